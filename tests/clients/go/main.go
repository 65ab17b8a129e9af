// Flows of an ordinary application on the Go client v2, each of which checks its own result.
//
//	clients <name server> [scenario...]
//
// Prints one line a scenario, "ok NAME" or "FAILED NAME: why", and exits with the number of failures.
package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/apache/rocketmq-client-go/v2"
	"github.com/apache/rocketmq-client-go/v2/admin"
	"github.com/apache/rocketmq-client-go/v2/consumer"
	"github.com/apache/rocketmq-client-go/v2/primitive"
	"github.com/apache/rocketmq-client-go/v2/producer"
	"github.com/apache/rocketmq-client-go/v2/rlog"
)

var (
	ns  primitive.NamesrvAddr
	run = strconv.FormatInt(time.Now().UnixMilli(), 36)
	ctx = context.Background()
)

func main() {
	rlog.SetLogLevel("fatal")
	ns = primitive.NamesrvAddr{os.Args[1]}
	scenarios := []struct {
		name string
		f    func() error
	}{
		{"send", send}, {"ordered", ordered}, {"cluster", cluster}, {"broadcast", broadcast}, {"tags", tags}, {"retry", retry},
	}
	failed := 0
	for _, s := range scenarios {
		if len(os.Args) > 2 && !strings.Contains(","+strings.Join(os.Args[2:], ",")+",", ","+s.name+",") {
			continue
		}
		t := time.Now()
		if err := s.f(); err != nil {
			failed++
			fmt.Printf("FAILED %s: %v\n", s.name, err)
		} else {
			fmt.Printf("ok %s (%d ms)\n", s.name, time.Since(t).Milliseconds())
		}
	}
	os.Exit(failed)
}

func newProducer(name string, queues int) (rocketmq.Producer, string, error) {
	topic := "G_" + name + run
	a, err := admin.NewAdmin(admin.WithResolver(primitive.NewPassthroughResolver(ns)))
	if err != nil {
		return nil, "", err
	}
	defer a.Close()
	addr := os.Getenv("RMQ_BROKER_ADDR")
	if err = a.CreateTopic(ctx, admin.WithTopicCreate(topic), admin.WithBrokerAddrCreate(addr), admin.WithReadQueueNums(queues), admin.WithWriteQueueNums(queues)); err != nil {
		return nil, "", fmt.Errorf("create topic %s on %s: %w", topic, addr, err)
	}
	p, err := rocketmq.NewProducer(producer.WithNameServer(ns), producer.WithGroupName("pg_"+name), producer.WithInstanceName("p"+name), producer.WithRetry(2),
		producer.WithQueueSelector(producer.NewHashQueueSelector()))
	if err != nil {
		return nil, "", err
	}
	return p, topic, p.Start()
}

func newConsumer(group, instance string, opts ...consumer.Option) (rocketmq.PushConsumer, error) {
	return rocketmq.NewPushConsumer(append([]consumer.Option{consumer.WithNameServer(ns), consumer.WithGroupName(group), consumer.WithInstance(instance + run),
		consumer.WithConsumeFromWhere(consumer.ConsumeFromFirstOffset)}, opts...)...)
}

// bag counts deliveries by body.
type bag struct {
	sync.Mutex
	n map[string]int
}

func newBag() *bag { return &bag{n: map[string]int{}} }
func (b *bag) take(ms []*primitive.MessageExt) {
	b.Lock()
	defer b.Unlock()
	for _, m := range ms {
		b.n[string(m.Body)]++
	}
}
func (b *bag) size() int { b.Lock(); defer b.Unlock(); return len(b.n) }

// until waits for a condition; the bound only matters when the answer is no.
func until(what string, ok func() bool) error {
	for end := time.Now().Add(90 * time.Second); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			return fmt.Errorf("waited 90 s for: %s", what)
		}
	}
	return nil
}

func drain(topic, group string, sel consumer.MessageSelector, want int) (*bag, error) {
	got := newBag()
	c, err := newConsumer(group, "drain")
	if err != nil {
		return nil, err
	}
	if err = c.Subscribe(topic, sel, func(_ context.Context, ms ...*primitive.MessageExt) (consumer.ConsumeResult, error) {
		got.take(ms)
		return consumer.ConsumeSuccess, nil
	}); err != nil {
		return nil, err
	}
	if err = c.Start(); err != nil {
		return nil, err
	}
	err = until(fmt.Sprintf("%d messages of %s", want, topic), func() bool { return got.size() >= want })
	if e := c.Shutdown(); err == nil {
		err = e
	}
	return got, err
}

func send() error {
	p, topic, err := newProducer("send", 4)
	if err != nil {
		return err
	}
	defer p.Shutdown()
	for i := 0; i < 30; i++ {
		m := primitive.NewMessage(topic, []byte(fmt.Sprintf("sync %d 消息", i))).WithTag("TagGo").WithKeys([]string{fmt.Sprintf("gk%d", i)})
		m.WithProperty("色", "红")
		if r, err := p.SendSync(ctx, m); err != nil || r.Status != primitive.SendOK {
			return fmt.Errorf("sync send: %v %v", r, err)
		}
	}
	var batch []*primitive.Message
	for i := 0; i < 10; i++ {
		batch = append(batch, primitive.NewMessage(topic, []byte(fmt.Sprintf("batch %d", i))).WithTag("TagGo"))
	}
	if r, err := p.SendSync(ctx, batch...); err != nil || r.Status != primitive.SendOK {
		return fmt.Errorf("batch send: %v %v", r, err)
	}
	for i := 0; i < 10; i++ {
		if err := p.SendOneWay(ctx, primitive.NewMessage(topic, []byte(fmt.Sprintf("oneway %d", i)))); err != nil {
			return err
		}
	}
	var wait sync.WaitGroup
	problems := make(chan error, 10)
	for i := 0; i < 10; i++ {
		wait.Add(1)
		if err := p.SendAsync(ctx, func(_ context.Context, r *primitive.SendResult, e error) {
			if e != nil || r.Status != primitive.SendOK {
				problems <- fmt.Errorf("async send: %v %v", r, e)
			}
			wait.Done()
		}, primitive.NewMessage(topic, []byte(fmt.Sprintf("async %d", i)))); err != nil {
			return err
		}
	}
	wait.Wait()
	select {
	case err := <-problems:
		return err
	default:
	}
	got, err := drain(topic, "cg_send"+run, consumer.MessageSelector{}, 60)
	if err != nil {
		return err
	}
	for body, n := range got.n {
		if n != 1 {
			return fmt.Errorf("%q was delivered %d times", body, n)
		}
	}
	return nil
}

func ordered() error {
	p, topic, err := newProducer("ordered", 4)
	if err != nil {
		return err
	}
	defer p.Shutdown()
	for s := 0; s < 20; s++ {
		for o := 0; o < 6; o++ {
			if _, err := p.SendSync(ctx, primitive.NewMessage(topic, []byte(fmt.Sprintf("%d:%d", o, s))).WithShardingKey(strconv.Itoa(o))); err != nil {
				return err
			}
		}
	}
	var mu sync.Mutex
	next, total, wrong := map[string]int{}, 0, ""
	c, err := newConsumer("cg_ordered"+run, "ord", consumer.WithConsumerOrder(true))
	if err != nil {
		return err
	}
	if err = c.Subscribe(topic, consumer.MessageSelector{}, func(_ context.Context, ms ...*primitive.MessageExt) (consumer.ConsumeResult, error) {
		mu.Lock()
		defer mu.Unlock()
		for _, m := range ms {
			f := strings.Split(string(m.Body), ":")
			if s, _ := strconv.Atoi(f[1]); s != next[f[0]] && wrong == "" {
				wrong = fmt.Sprintf("order %s: step %d came where %d was due", f[0], s, next[f[0]])
			}
			next[f[0]]++
			total++
		}
		return consumer.ConsumeSuccess, nil
	}); err != nil {
		return err
	}
	if err = c.Start(); err != nil {
		return err
	}
	defer c.Shutdown()
	if err = until("120 ordered messages", func() bool { mu.Lock(); defer mu.Unlock(); return total >= 120 }); err != nil {
		return err
	}
	if wrong != "" {
		return fmt.Errorf("%s", wrong)
	}
	return nil
}

func members(topic string, group string, model consumer.MessageModel) ([]*bag, func(), error) {
	var bags []*bag
	var started []rocketmq.PushConsumer
	stop := func() {
		for _, c := range started {
			c.Shutdown()
		}
	}
	for k := 0; k < 2; k++ {
		b := newBag()
		bags = append(bags, b)
		c, err := newConsumer(group, fmt.Sprintf("%s-%d", group, k), consumer.WithConsumerModel(model))
		if err == nil {
			err = c.Subscribe(topic, consumer.MessageSelector{}, func(_ context.Context, ms ...*primitive.MessageExt) (consumer.ConsumeResult, error) {
				b.take(ms)
				return consumer.ConsumeSuccess, nil
			})
		}
		if err == nil {
			err = c.Start()
		}
		if err != nil {
			stop()
			return nil, nil, err
		}
		started = append(started, c)
	}
	return bags, stop, nil
}

func cluster() error {
	p, topic, err := newProducer("cluster", 8)
	if err != nil {
		return err
	}
	defer p.Shutdown()
	bags, stop, err := members(topic, "cg_cluster"+run, consumer.Clustering)
	if err != nil {
		return err
	}
	defer stop()
	sent := 0
	if err = until("both members of the group to own queues", func() bool {
		_, e := p.SendSync(ctx, primitive.NewMessage(topic, []byte(fmt.Sprintf("c%d", sent))).WithShardingKey(strconv.Itoa(sent)))
		if e == nil {
			sent++
		}
		return bags[0].size() > 0 && bags[1].size() > 0
	}); err != nil {
		return err
	}
	return until("every message", func() bool {
		all := map[string]bool{}
		for _, b := range bags {
			b.Lock()
			for k := range b.n {
				all[k] = true
			}
			b.Unlock()
		}
		return len(all) == sent
	})
}

func broadcast() error {
	p, topic, err := newProducer("bc", 4)
	if err != nil {
		return err
	}
	defer p.Shutdown()
	bags, stop, err := members(topic, "cg_gobc"+run, consumer.BroadCasting)
	if err != nil {
		return err
	}
	defer stop()
	for i := 0; i < 30; i++ {
		if _, err := p.SendSync(ctx, primitive.NewMessage(topic, []byte(fmt.Sprintf("x%d", i))).WithShardingKey(strconv.Itoa(i))); err != nil {
			return err
		}
	}
	return until("every message at every member", func() bool { return bags[0].size() == 30 && bags[1].size() == 30 })
}

func tags() error {
	p, topic, err := newProducer("tags", 4)
	if err != nil {
		return err
	}
	defer p.Shutdown()
	for i := 0; i < 60; i++ {
		tag := []string{"TagA", "TagB", "TagC"}[i%3]
		if _, err := p.SendSync(ctx, primitive.NewMessage(topic, []byte(fmt.Sprintf("%s:%d", tag, i))).WithTag(tag).WithShardingKey(strconv.Itoa(i))); err != nil {
			return err
		}
	}
	got, err := drain(topic, "cg_tags"+run, consumer.MessageSelector{Type: consumer.TAG, Expression: "TagA || TagC"}, 40)
	if err != nil {
		return err
	}
	for body := range got.n {
		if strings.HasPrefix(body, "TagB") {
			return fmt.Errorf("%s was delivered", body)
		}
	}
	return nil
}

func retry() error {
	p, topic, err := newProducer("retry", 2)
	if err != nil {
		return err
	}
	defer p.Shutdown()
	for i := 0; i < 3; i++ {
		if _, err := p.SendSync(ctx, primitive.NewMessage(topic, []byte(fmt.Sprintf("y%d", i))).WithShardingKey(strconv.Itoa(i))); err != nil {
			return err
		}
	}
	group := "cg_goretry" + run
	var mu sync.Mutex
	tries := map[string][]int32{}
	c, err := newConsumer(group, "retry", consumer.WithMaxReconsumeTimes(1))
	if err != nil {
		return err
	}
	if err = c.Subscribe(topic, consumer.MessageSelector{}, func(ctx context.Context, ms ...*primitive.MessageExt) (consumer.ConsumeResult, error) {
		mu.Lock()
		defer mu.Unlock()
		for _, m := range ms {
			tries[string(m.Body)] = append(tries[string(m.Body)], m.ReconsumeTimes)
		}
		if cc, ok := primitive.GetConcurrentlyCtx(ctx); ok {
			cc.DelayLevelWhenNextConsume = 1
		}
		return consumer.ConsumeRetryLater, nil
	}); err != nil {
		return err
	}
	if err = c.Start(); err != nil {
		return err
	}
	err = until("each message tried twice", func() bool {
		mu.Lock()
		defer mu.Unlock()
		for i := 0; i < 3; i++ {
			if len(tries[fmt.Sprintf("y%d", i)]) < 2 {
				return false
			}
		}
		return true
	})
	if err == nil {
		var dead *bag
		if dead, err = drain("%DLQ%"+group, "cg_godead"+run, consumer.MessageSelector{}, 3); err == nil && dead.size() != 3 {
			err = fmt.Errorf("dead letters: %v", dead.n)
		}
	}
	c.Shutdown()
	return err
}
