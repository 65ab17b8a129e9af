// Load for NATS JetStream by its official client: a stream in files on three servers, acknowledged by a majority.
//
//	natsgen URLS send SIZE PUBLISHERS         sends until it is killed, says each second how many
//	natsgen URLS open SIZE RATE WARM SECONDS  sends that are due at a rate, latencies counted from then on
//	natsgen URLS probe                        one send after the other; begin and acknowledgement of each (Unix ms)
//	natsgen URLS info                         the stream's leader and its messages
//
// All publishers share a connection, as the threads of a Java producer do.
package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand"
	"os"
	"sort"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	stream  = "bench"
	subject = "bench.all"
	pause   = 10 * time.Millisecond
)

func argument(at int) int {
	value, err := strconv.Atoi(os.Args[at])
	if err != nil {
		panic(err)
	}
	return value
}

// open waits for the servers and makes the stream, if there is none yet.
func open(url string) (jetstream.JetStream, jetstream.Stream) {
	config := jetstream.StreamConfig{
		Name: stream, Subjects: []string{"bench.>"}, Replicas: 3, Storage: jetstream.FileStorage,
	}
	for ; ; time.Sleep(pause) {
		conn, err := nats.Connect(url, nats.MaxReconnects(-1), nats.ReconnectWait(pause), nats.ReconnectJitter(0, 0))
		if err != nil {
			continue
		}
		js, err := jetstream.New(conn)
		if err != nil {
			panic(err)
		}
		for ; ; time.Sleep(pause) {
			limit, done := context.WithTimeout(context.Background(), time.Second)
			made, err := js.Stream(limit, stream)
			if errors.Is(err, jetstream.ErrStreamNotFound) {
				made, err = js.CreateStream(limit, config)
			}
			done()
			if err == nil {
				return js, made
			}
		}
	}
}

func body(size int) []byte {
	bytes := make([]byte, size)
	rand.New(rand.NewSource(7)).Read(bytes)
	return bytes
}

func send(js jetstream.JetStream, size, publishers int) {
	message := body(size)
	var sent, failed atomic.Int64
	for range publishers {
		go func() {
			for {
				if _, err := js.Publish(context.Background(), subject, message); err != nil {
					failed.Add(1)
				} else {
					sent.Add(1)
				}
			}
		}()
	}
	last := time.Now()
	for {
		time.Sleep(time.Second)
		now := time.Now()
		rate := float64(sent.Swap(0)) / now.Sub(last).Seconds()
		last = now
		fmt.Printf("Send TPS: %.0f Send Failed: %d\n", rate, failed.Load())
	}
}

func openLoop(js jetstream.JetStream, size, rate, warm, seconds int) {
	message := body(size)
	total, skip := rate*(warm+seconds), rate*warm
	latencies := make([]float64, total)
	var next, failed atomic.Int64
	start := time.Now().Add(200 * time.Millisecond)
	var publishers sync.WaitGroup
	for range 64 {
		publishers.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= total {
					return
				}
				due := start.Add(time.Duration(i) * time.Second / time.Duration(rate))
				time.Sleep(time.Until(due))
				if _, err := js.Publish(context.Background(), subject, message); err != nil {
					failed.Add(1)
				}
				latencies[i] = float64(time.Since(due).Microseconds()) / 1000
			}
		})
	}
	publishers.Wait()
	measured := latencies[skip:]
	sort.Float64s(measured)
	at := func(q float64) float64 { return measured[min(int(q*float64(len(measured))), len(measured)-1)] }
	fmt.Printf("{\"sends\":%d,\"failed\":%d,\"p50_ms\":%.3f,\"p99_ms\":%.3f,\"p999_ms\":%.3f,\"max_ms\":%.3f}\n",
		len(measured), failed.Load(), at(0.5), at(0.99), at(0.999), at(1))
}

func probe(js jetstream.JetStream) {
	message := body(1)
	for ; ; time.Sleep(5 * time.Millisecond) {
		begun := time.Now()
		limit, done := context.WithTimeout(context.Background(), 500*time.Millisecond)
		_, err := js.Publish(limit, subject, message, jetstream.WithRetryAttempts(0))
		done()
		if err == nil {
			fmt.Println(begun.UnixMilli(), time.Now().UnixMilli())
		}
	}
}

func main() {
	js, made := open(os.Args[1])
	switch os.Args[2] {
	case "send":
		send(js, argument(3), argument(4))
	case "open":
		openLoop(js, argument(3), argument(4), argument(5), argument(6))
	case "probe":
		probe(js)
	case "info":
		info, err := made.Info(context.Background())
		if err != nil {
			panic(err)
		}
		fmt.Printf("{\"leader\":%q,\"messages\":%d}\n", info.Cluster.Leader, info.State.Msgs)
	}
}
