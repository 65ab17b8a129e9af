// The application of benches/java/Failover.java on the Go client v2: the same arguments, the same words on
// standard input, the same JSON on standard output.
//
//	failover <name server> <topic> <ordered topic> <sends a second>
//
// 8 goroutines send at the rate in all; 2 more send 48 ordered keys by the hash selector, a fifth of that, and
// try a key again after 100 ms until it is accepted.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/apache/rocketmq-client-go/v2"
	"github.com/apache/rocketmq-client-go/v2/consumer"
	"github.com/apache/rocketmq-client-go/v2/primitive"
	"github.com/apache/rocketmq-client-go/v2/producer"
	"github.com/apache/rocketmq-client-go/v2/rlog"
)

const (
	threads, orderedThreads, keys = 8, 2, 48
	longWait                      = 1500 * time.Millisecond
	retryPause                    = 100 * time.Millisecond
)

type ack struct {
	queue int
	at    time.Time
}

type send struct {
	thread       int
	begun, ended time.Time
	err          string
}

// window is what happened since the mark.
type window struct {
	// The mark, and when the fault had struck.
	from, struck time.Time
	// Plain sends that were begun in it, and ordered ones that ended in it.
	sends, ordered []*send
	acks, arrivals []time.Time
	// The longest time from acknowledgement, but no earlier than the mark, to arrival, by queue.
	lags map[int]time.Duration
	// Queues that are read from the node that is struck.
	ofStruck map[int]bool
	// Of the counts below, at the mark.
	twiceBefore, againBefore, disorderBefore int
}

var (
	run      = strconv.FormatInt(time.Now().UnixMilli(), 36)
	ctx      = context.Background()
	mu       sync.Mutex // over all below
	win      = newWindow()
	underWay = map[string]ack{} // plain messages that are acknowledged and have not arrived
	flying   = map[*send]bool{}
	acked    = map[string]bool{}
	failed   = map[string]bool{}
	places   = map[string]map[string]bool{}
	newest   [keys]int
	twice    int
	again    int
	disorder int
	stopping atomic.Bool
)

func (w *window) late(a ack, now time.Time) {
	if a.at.Before(w.from) {
		a.at = w.from
	}
	w.lags[a.queue] = max(w.lags[a.queue], now.Sub(a.at))
}

func newWindow() *window {
	now := time.Now()
	return &window{from: now, struck: now, lags: map[int]time.Duration{}, twiceBefore: twice, againBefore: again, disorderBefore: disorder}
}

func main() {
	rlog.SetLogLevel("fatal")
	ns, topic, orderedTopic := os.Args[1], os.Args[2], os.Args[3]
	rate, err := strconv.Atoi(os.Args[4])
	must(err)
	for k := range newest {
		newest[k] = -1
	}
	plain, ordered := newProducer(ns, "plain"), newProducer(ns, "ordered", producer.WithQueueSelector(producer.NewHashQueueSelector()))
	reader := newConsumer(ns, topic, "cp", consumer.WithConsumerOrder(false))
	newConsumer(ns, orderedTopic, "co", consumer.WithConsumerOrder(true))
	var wait sync.WaitGroup
	for t := 0; t < threads; t++ {
		wait.Add(1)
		go func(t int) { defer wait.Done(); sendPlain(plain, topic, t, rate) }(t)
	}
	for t := 0; t < orderedThreads; t++ {
		wait.Add(1)
		go func(t int) { defer wait.Done(); sendOrdered(ordered, orderedTopic, t, rate/5) }(t)
	}
	fmt.Println(`{"started":1}`)
	var atMark []*send
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		switch word, _, _ := strings.Cut(in.Text(), " "); word {
		case "mark":
			queues := readFrom(reader, topic, strings.TrimSpace(strings.TrimPrefix(in.Text(), word)))
			mu.Lock()
			win, atMark = newWindow(), nil
			win.ofStruck = queues
			for s := range flying {
				atMark = append(atMark, s)
			}
			mu.Unlock()
			fmt.Println(`{"marked":1}`)
		case "struck":
			at, err := strconv.ParseInt(strings.TrimSpace(strings.TrimPrefix(in.Text(), word)), 10, 64)
			must(err)
			mu.Lock()
			win.struck = time.Unix(0, at)
			mu.Unlock()
			fmt.Println(`{"noted":1}`)
		case "report":
			report(atMark)
		case "stop":
			stopping.Store(true)
			wait.Wait()
			end()
			return
		}
	}
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func newProducer(ns, group string, more ...producer.Option) rocketmq.Producer {
	p, err := rocketmq.NewProducer(append([]producer.Option{producer.WithNameServer(primitive.NamesrvAddr{ns}),
		producer.WithGroupName(group + run), producer.WithInstanceName(group + run)}, more...)...)
	must(err)
	must(p.Start())
	return p
}

func newConsumer(ns, topic, group string, order consumer.Option) rocketmq.PushConsumer {
	c, err := rocketmq.NewPushConsumer(consumer.WithNameServer(primitive.NamesrvAddr{ns}), consumer.WithGroupName(group+run),
		consumer.WithInstance(group+run), consumer.WithConsumeFromWhere(consumer.ConsumeFromFirstOffset), order)
	must(err)
	must(c.Subscribe(topic, consumer.MessageSelector{}, func(_ context.Context, ms ...*primitive.MessageExt) (consumer.ConsumeResult, error) {
		for _, m := range ms {
			see(m)
		}
		return consumer.ConsumeSuccess, nil
	}))
	must(c.Start())
	return c
}

// readFrom gives the queues that are pulled from an address. The client does not tell, so this looks into it.
func readFrom(c rocketmq.PushConsumer, topic, address string) map[int]bool {
	inner := reflect.ValueOf(c).Elem().FieldByName("defaultConsumer").Elem()
	field := func(name string) reflect.Value {
		found := inner.FieldByName(name)
		return reflect.NewAt(found.Type(), unsafe.Pointer(found.UnsafeAddr())).Elem()
	}
	routes := field("client").MethodByName("GetNameSrv").Call(nil)[0]
	find := routes.MethodByName("FindBrokerAddressInSubscribe")
	queues := map[int]bool{}
	field("pullFromWhichNodeTable").Addr().Interface().(*sync.Map).Range(func(key, id any) bool {
		q := key.(primitive.MessageQueue)
		from := find.Call([]reflect.Value{reflect.ValueOf(q.BrokerName), reflect.ValueOf(id), reflect.ValueOf(false)})[0]
		if q.Topic == topic && !from.IsNil() && from.Elem().FieldByName("BrokerAddr").String() == address {
			queues[q.QueueId] = true
		}
		return true
	})
	return queues
}

func see(m *primitive.MessageExt) {
	text := string(m.Body)
	f := strings.Split(text, ":")
	if f[0] != run {
		return
	}
	mu.Lock()
	defer mu.Unlock()
	now, queue := time.Now(), m.Queue.QueueId
	if f[1] == "p" {
		win.arrivals = append(win.arrivals, now)
		// It may arrive before its acknowledgement does.
		if at, ok := underWay[text]; ok {
			win.late(at, now)
			delete(underWay, text)
		}
	}
	place := fmt.Sprintf("%d/%d", queue, m.QueueOffset)
	at := places[text]
	switch {
	case at == nil:
		places[text] = map[string]bool{place: true}
	case at[place]:
		again++
		return
	default:
		at[place] = true
		twice++
		return
	}
	if f[1] == "o" {
		key, _ := strconv.Atoi(f[2])
		number, _ := strconv.Atoi(f[3])
		if number < newest[key] {
			disorder++
		}
		newest[key] = max(newest[key], number)
	}
}

// pace calls each until the end, rate times a second over all threads, without catching up.
func pace(thread, of, rate int, each func(turn int)) {
	period := time.Duration(of) * time.Second / time.Duration(rate)
	due := time.Now().Add(period * time.Duration(thread) / time.Duration(of))
	for turn := 0; !stopping.Load(); turn++ {
		time.Sleep(time.Until(due))
		each(turn)
		if late := time.Now().Add(-period); due.Before(late) {
			due = late
		}
		due = due.Add(period)
	}
}

func sendPlain(p rocketmq.Producer, topic string, thread, rate int) {
	pace(thread, threads, rate, func(n int) {
		text := fmt.Sprintf("%s:p:%d:%d", run, thread, n)
		s := &send{thread: thread, begun: time.Now()}
		mu.Lock()
		flying[s] = true
		mu.Unlock()
		s.err = deliver(p, primitive.NewMessage(topic, []byte(text)), text)
		mu.Lock()
		defer mu.Unlock()
		s.ended = time.Now()
		if s.err == "" {
			win.acks = append(win.acks, s.ended)
		}
		if !s.begun.Before(win.from) {
			win.sends = append(win.sends, s)
		}
		delete(flying, s)
	})
}

// sendOrdered sends by keys, of which a third goes by each of three names by this client's hash.
func sendOrdered(p rocketmq.Producer, topic string, thread, rate int) {
	const mine = keys / orderedThreads
	var next [mine]int
	// When to try again what has failed.
	var again [mine]time.Time
	try := func(k int) {
		key := thread*mine + k
		s := &send{thread: key, begun: time.Now()}
		text := fmt.Sprintf("%s:o:%d:%d", run, key, next[k])
		s.err = deliver(p, primitive.NewMessage(topic, []byte(text)).WithShardingKey(fmt.Sprint("key-", key)), text)
		s.ended = time.Now()
		mu.Lock()
		win.ordered = append(win.ordered, s)
		mu.Unlock()
		again[k] = time.Time{}
		if s.err == "" {
			next[k]++
		} else {
			again[k] = s.ended.Add(retryPause)
		}
	}
	at := 0
	pace(thread, orderedThreads, rate, func(int) {
		for k := 0; k < mine; k++ {
			if !again[k].IsZero() && !time.Now().Before(again[k]) {
				try(k)
			}
		}
		// And the next key that does not wait.
		for n := 0; n < mine; n++ {
			at = (at + 1) % mine
			if again[at].IsZero() {
				try(at)
				return
			}
		}
	})
}

// deliver gives the error, or nothing.
func deliver(p rocketmq.Producer, m *primitive.Message, text string) string {
	r, err := p.SendSync(ctx, m)
	problem := ""
	if err != nil {
		problem = err.Error()
	} else if r.Status != primitive.SendOK {
		problem = fmt.Sprint("status ", r.Status)
	}
	mu.Lock()
	defer mu.Unlock()
	if problem == "" {
		acked[text] = true
		if places[text] == nil && strings.Contains(text, ":p:") {
			underWay[text] = ack{r.MessageQueue.QueueId, time.Now()}
		}
	} else {
		failed[text] = true
	}
	return problem
}

func ms(d time.Duration) float64 { return float64(d.Milliseconds()) }

// gap is the longest silence from the mark to now.
func gap(from time.Time, times []time.Time) float64 {
	sorted := slices.Clone(times)
	slices.SortFunc(sorted, func(a, b time.Time) int { return a.Compare(b) })
	var longest time.Duration
	for _, t := range append(sorted, time.Now()) {
		longest = max(longest, t.Sub(from))
		from = t
	}
	return ms(longest)
}

var variable = regexp.MustCompile(`\d+\.\d+\.\d+\.\d+:\d+`)

func report(atMark []*send) {
	mu.Lock()
	defer mu.Unlock()
	bad, badFlying := 0, 0
	var slowest, slowestFlying, longest, ofLiving, ofStruck time.Duration
	var badOf [threads]int
	errors := map[string]int{}
	inFlight, sends := slices.Clone(atMark), []*send{}
	for _, s := range win.sends {
		if s.begun.Before(win.struck) {
			inFlight = append(inFlight, s)
		} else {
			sends = append(sends, s)
		}
	}
	for _, s := range sends {
		slowest = max(slowest, s.ended.Sub(s.begun))
		if s.err != "" {
			bad++
			badOf[s.thread]++
			errors[brief(s.err)]++
		}
	}
	for _, s := range inFlight {
		ended := s.ended
		if ended.IsZero() {
			ended = time.Now()
		}
		slowestFlying = max(slowestFlying, ended.Sub(win.from))
		if s.err != "" || s.ended.IsZero() {
			badFlying++
			badOf[s.thread]++
			errors["in flight: "+brief(s.err)]++
		}
	}
	for _, at := range underWay {
		win.late(at, time.Now())
	}
	for queue, lag := range win.lags {
		if win.ofStruck[queue] {
			ofStruck = max(ofStruck, lag)
		} else {
			ofLiving = max(ofLiving, lag)
		}
	}
	attempts, badAttempts, waiting := 0, 0, 0
	var keyFlying time.Duration
	var since [keys]time.Time
	var waited [keys]time.Duration
	// The attempts of one key in their order.
	for _, s := range win.ordered {
		key := s.thread
		if s.begun.Before(win.struck) {
			begun := s.begun
			if begun.Before(win.from) {
				begun = win.from
			}
			keyFlying = max(keyFlying, s.ended.Sub(begun))
			continue
		}
		attempts++
		if since[key].IsZero() {
			since[key] = s.begun
		}
		waited[key] = max(waited[key], s.ended.Sub(since[key]))
		if s.err == "" {
			since[key] = time.Time{}
		} else {
			badAttempts++
		}
	}
	for _, t := range waited {
		longest = max(longest, t)
		if t > longWait {
			waiting++
		}
	}
	print(map[string]any{
		"seconds": time.Since(win.from).Seconds(), "sends": len(sends), "failed": bad, "failed_of_thread": slices.Max(badOf[:]), "in_flight": len(inFlight), "in_flight_failed": badFlying,
		"in_flight_ms": ms(slowestFlying), "slowest_ms": ms(slowest), "send_gap_ms": gap(win.from, win.acks), "consume_gap_ms": gap(win.from, win.arrivals),
		"living_lag_ms": ms(ofLiving), "struck_queues": len(win.ofStruck), "struck_lag_ms": ms(ofStruck), "keys_waiting": waiting, "key_wait_ms": ms(longest),
		"ordered": attempts, "ordered_failed": badAttempts, "in_flight_key_ms": ms(keyFlying), "stored_twice": twice - win.twiceBefore, "redelivered": again - win.againBefore,
		"out_of_order": disorder - win.disorderBefore, "errors": errors,
	})
}

func brief(s string) string {
	s = variable.ReplaceAllString(s, "ADDR")
	return s[:min(len(s), 90)]
}

func print(v any) {
	line, err := json.Marshal(v)
	must(err)
	fmt.Println(string(line))
}

// end waits for what was acknowledged; it may take a consumer half a minute and more to find its queue again.
func end() {
	lost, before, quiet := 1, -1, time.Now()
	for lost > 0 && time.Since(quiet) < time.Minute {
		time.Sleep(200 * time.Millisecond)
		mu.Lock()
		lost = 0
		for text := range acked {
			if places[text] == nil {
				lost++
			}
		}
		if len(places) != before {
			before, quiet = len(places), time.Now()
		}
		mu.Unlock()
	}
	time.Sleep(time.Second)
	mu.Lock()
	defer mu.Unlock()
	yet := 0
	for text := range failed {
		if !acked[text] && places[text] != nil {
			yet++
		}
	}
	print(map[string]any{"acknowledged": len(acked), "lost": lost, "stored_twice": twice, "redelivered": again, "out_of_order": disorder, "failed_yet_stored": yet})
}
