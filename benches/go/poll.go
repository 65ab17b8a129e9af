// Clients that ask a name server for a route once a second, each on a connection of its own, as stock clients
// do whose pollNameServerInterval is 1000.
//
//	poll <name server> <topic> <clients> <seconds>
//
// Prints one JSON line: how many answers, what went wrong, and how long answers took, in milliseconds.
package main

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"
)

const (
	patience  = 3 * time.Second
	connectAt = 2000 // connections opened a second
)

func main() {
	server, topic := os.Args[1], os.Args[2]
	clients, _ := strconv.Atoi(os.Args[3])
	seconds, _ := strconv.Atoi(os.Args[4])
	if clients < 1 || seconds < 1 {
		fmt.Fprintln(os.Stderr, "usage: poll NAME_SERVER TOPIC CLIENTS SECONDS")
		os.Exit(2)
	}
	header, _ := json.Marshal(map[string]any{"code": 105, "language": "GO", "version": 409, "opaque": 1, "flag": 0, "extFields": map[string]string{"topic": topic}})
	frame := binary.BigEndian.AppendUint32(nil, uint32(4+len(header)))
	frame = append(binary.BigEndian.AppendUint32(frame, uint32(len(header))), header...)

	start := time.Now().Add(time.Duration(clients/connectAt+1) * time.Second)
	var mu sync.Mutex
	var took []time.Duration
	problems := map[string]int{}
	var wait sync.WaitGroup
	for c := 0; c < clients; c++ {
		wait.Add(1)
		go func(c int) {
			defer wait.Done()
			mine, problem := poll(server, frame, seconds, time.Duration(c)*time.Second/connectAt, start.Add(time.Duration(c)*time.Second/time.Duration(clients)))
			mu.Lock()
			defer mu.Unlock()
			took = append(took, mine...)
			if problem != nil {
				problems[problem.Error()]++
			}
		}(c)
	}
	wait.Wait()
	slices.Sort(took)
	at := func(share float64) float64 {
		if len(took) == 0 {
			return -1
		}
		return float64(took[int(share*float64(len(took)-1))].Microseconds()) / 1000
	}
	line, _ := json.Marshal(map[string]any{"clients": clients, "seconds": seconds, "answers": len(took), "problems": problems, "p50_ms": at(0.5), "p99_ms": at(0.99), "p999_ms": at(0.999), "max_ms": at(1)})
	fmt.Println(string(line))
}

// poll asks once a second from start on.
func poll(server string, frame []byte, seconds int, before time.Duration, start time.Time) ([]time.Duration, error) {
	time.Sleep(before)
	conn, err := net.DialTimeout("tcp", server, patience)
	if err != nil {
		return nil, fmt.Errorf("connect")
	}
	defer conn.Close()
	var took []time.Duration
	var length [4]byte
	for n := 0; n < seconds; n++ {
		time.Sleep(time.Until(start.Add(time.Duration(n) * time.Second)))
		begun := time.Now()
		conn.SetDeadline(begun.Add(patience))
		if _, err := conn.Write(frame); err != nil {
			return took, fmt.Errorf("write")
		}
		if _, err := io.ReadFull(conn, length[:]); err != nil {
			return took, fmt.Errorf("read")
		}
		answer := make([]byte, binary.BigEndian.Uint32(length[:]))
		if _, err := io.ReadFull(conn, answer); err != nil {
			return took, fmt.Errorf("read")
		}
		headerLength := binary.BigEndian.Uint32(answer) & 0xffffff
		var header struct{ Code int }
		if json.Unmarshal(answer[4:4+headerLength], &header) != nil || header.Code != 0 {
			return took, fmt.Errorf("code %d", header.Code)
		}
		took = append(took, time.Since(begun))
	}
	return took, nil
}
