// Flows of an ordinary application on the Go client v2, each of which checks its own result.
//
//	clients <name server> [scenario...]
//
// Prints one line a scenario, "ok NAME" or "FAILED NAME: why", and exits with the number of failures.
//
// Queries by key and by id are not among them: v2.1.2 has the request codes (internal/request.go), but
// neither admin.Admin nor a producer or consumer (api.go) has a call that sends them.
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
		{"send", send}, {"ordered", ordered}, {"cluster", cluster}, {"broadcast", broadcast}, {"tags", tags}, {"retry", retry}, {"pull", pull}, {"transaction", transaction}, {"request", request},
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

// routed waits until the name server knows a topic.
func routed(topic string) error {
	a, err := admin.NewAdmin(admin.WithResolver(primitive.NewPassthroughResolver(ns)))
	if err != nil {
		return err
	}
	defer a.Close()
	return until("the route of "+topic, func() bool {
		queues, err := a.FetchPublishMessageQueues(ctx, topic)
		return err == nil && len(queues) > 0
	})
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
		err = routed("%DLQ%" + group) // it is made when the last try has failed
	}
	if err == nil {
		var dead *bag
		if dead, err = drain("%DLQ%"+group, "cg_godead"+run, consumer.MessageSelector{}, 3); err == nil && dead.size() != 3 {
			err = fmt.Errorf("dead letters: %v", dead.n)
		}
	}
	c.Shutdown()
	return err
}

func newPullConsumer(topic, group, instance, tag string) (rocketmq.PullConsumer, error) {
	c, err := rocketmq.NewPullConsumer(consumer.WithNameServer(ns), consumer.WithGroupName(group), consumer.WithInstance(instance+run),
		consumer.WithConsumeFromWhere(consumer.ConsumeFromFirstOffset))
	if err != nil {
		return nil, err
	}
	if err = c.Subscribe(topic, consumer.MessageSelector{Type: consumer.TAG, Expression: tag}); err != nil {
		return nil, err
	}
	return c, c.Start()
}

// poll takes and acknowledges messages until it has as many different ones as are wanted and none
// is left: the client panics at its shutdown if it still has one to hand over.
func poll(c rocketmq.PullConsumer, want int) (*bag, error) {
	got := newBag()
	err := until(fmt.Sprintf("%d messages by poll", want), func() bool {
		r, e := c.Poll(ctx, time.Second)
		if e == nil {
			got.take(r.GetMsgList())
			c.ACK(ctx, r, consumer.ConsumeSuccess)
		}
		return e != nil && got.size() >= want
	})
	return got, err
}

func pull() error {
	p, topic, err := newProducer("pull", 2)
	if err != nil {
		return err
	}
	defer p.Shutdown()
	sendRange := func(from, to int) error {
		for i := from; i < to; i++ {
			m := primitive.NewMessage(topic, []byte(fmt.Sprintf("p%d", i))).WithTag([]string{"Even", "Odd"}[i%2]).WithShardingKey(strconv.Itoa(i))
			if _, e := p.SendSync(ctx, m); e != nil {
				return e
			}
		}
		return nil
	}
	if err = sendRange(0, 40); err != nil {
		return err
	}

	// by poll, in the queues that the group's only member was given; what is acknowledged stays so
	group := "cg_gopull" + run
	all := map[string]bool{}
	for round := 0; round < 2; round++ {
		c, err := newPullConsumer(topic, group, fmt.Sprintf("pull%d", round), "Even")
		if err != nil {
			return err
		}
		got, err := poll(c, 20)
		if err == nil {
			err = c.PersistOffset(ctx, topic)
		}
		if e := c.Shutdown(); err == nil {
			err = e
		}
		if err != nil {
			return fmt.Errorf("round %d: %w", round, err)
		}
		for body := range got.n {
			if all[body] {
				return fmt.Errorf("%s came again although its offset was committed", body)
			}
			if i, _ := strconv.Atoi(body[1:]); i%2 != 0 {
				return fmt.Errorf("%s has another tag", body)
			}
			all[body] = true
		}
		if round == 0 {
			if err = sendRange(40, 80); err != nil {
				return err
			}
		}
	}

	// by position, each queue from its start to its end
	c, err := newPullConsumer(topic, "cg_gofrom"+run, "from", "*")
	if err != nil {
		return err
	}
	defer c.Shutdown()
	a, err := admin.NewAdmin(admin.WithResolver(primitive.NewPassthroughResolver(ns)))
	if err != nil {
		return err
	}
	defer a.Close()
	queues, err := a.FetchPublishMessageQueues(ctx, topic)
	if err != nil || len(queues) != 2 {
		return fmt.Errorf("queues of %s: %v %w", topic, queues, err)
	}
	found := newBag()
	for _, q := range queues {
		for at, end := int64(0), int64(1); at < end; {
			r, err := c.PullFrom(ctx, q, at, 7)
			if err != nil || r.Status != primitive.PullFound {
				return fmt.Errorf("pull of %v at %d: %v %v", q, at, r, err)
			}
			for _, m := range r.GetMessageExts() {
				if m.QueueOffset != at {
					return fmt.Errorf("%v: offset %d came where %d was due", q, m.QueueOffset, at)
				}
				at++
			}
			found.take(r.GetMessageExts())
			if r.NextBeginOffset != at {
				return fmt.Errorf("%v: next offset %d behind %d", q, r.NextBeginOffset, at)
			}
			end = r.MaxOffset
		}
		if r, err := c.PullFrom(ctx, q, 1000, 7); err != nil || r.Status != primitive.PullOffsetIllegal {
			return fmt.Errorf("pull of %v beyond its end: %v %v", q, r, err)
		}
	}
	if len(found.n) != 80 {
		return fmt.Errorf("%d of 80 messages by position", len(found.n))
	}
	return nil
}

// ledger is what an application knows of its transactions: those whose body begins with c are committed, and
// those that end with l were left open until the broker asks.
type ledger struct{ asked sync.Map }

func (l *ledger) of(body []byte) primitive.LocalTransactionState {
	if body[0] == 'c' {
		return primitive.CommitMessageState
	}
	return primitive.RollbackMessageState
}

func (l *ledger) ExecuteLocalTransaction(m *primitive.Message) primitive.LocalTransactionState {
	if m.Body[len(m.Body)-1] == 'l' {
		return primitive.UnknowState
	}
	return l.of(m.Body)
}

func (l *ledger) CheckLocalTransaction(m *primitive.MessageExt) primitive.LocalTransactionState {
	l.asked.Store(string(m.Body), true)
	return l.of(m.Body)
}

// transaction commits and rolls back, at once and when the broker asks.
func transaction() error {
	plain, topic, err := newProducer("transaction", 2)
	if err != nil {
		return err
	}
	defer plain.Shutdown()
	if err = routed(topic); err != nil {
		return err
	}
	known := &ledger{}
	p, err := rocketmq.NewTransactionProducer(known, producer.WithNameServer(ns), producer.WithGroupName("pg_tx"+run), producer.WithInstanceName("ptx"+run), producer.WithRetry(2))
	if err != nil {
		return err
	}
	if err = p.Start(); err != nil {
		return err
	}
	defer p.Shutdown()
	for i := 0; i < 5; i++ {
		for _, how := range []string{"c%dn", "c%dl", "r%dn", "r%dl"} {
			if _, err = p.SendMessageInTransaction(ctx, primitive.NewMessage(topic, []byte(fmt.Sprintf(how, i)))); err != nil {
				return err
			}
		}
	}
	got, err := drain(topic, "cg_gotx"+run, consumer.MessageSelector{}, 10)
	if err != nil {
		return err
	}
	if err = until("questions for what was rolled back later", func() bool {
		asked := 0
		known.asked.Range(func(body, _ any) bool {
			if strings.HasPrefix(body.(string), "r") {
				asked++
			}
			return true
		})
		return asked == 5
	}); err != nil {
		return err
	}
	got.Lock()
	defer got.Unlock()
	for body, times := range got.n {
		if body[0] != 'c' || times != 1 {
			return fmt.Errorf("%s arrived %d times", body, times)
		}
	}
	return nil
}

// request asks and has the consumer's answer passed back. A Go producer tells the broker of itself every
// 30 s only, and one that the broker does not know gets no answer: so the first ones may be lost.
func request() error {
	p, topic, err := newProducer("request", 2)
	if err != nil {
		return err
	}
	defer p.Shutdown()
	c, err := newConsumer("cg_gorequest"+run, "request")
	if err != nil {
		return err
	}
	if err = c.Subscribe(topic, consumer.MessageSelector{}, func(_ context.Context, ms ...*primitive.MessageExt) (consumer.ConsumeResult, error) {
		for _, m := range ms {
			if reply, e := consumer.CreateReplyMessage(m, nil); e == nil { // v2.1.2 would take a body for properties
				reply.Body = append([]byte("re: "), m.Body...)
				p.SendSync(ctx, reply)
			}
		}
		return consumer.ConsumeSuccess, nil
	}); err != nil {
		return err
	}
	if err = c.Start(); err != nil {
		return err
	}
	defer c.Shutdown()
	answered := 0
	return until("three answers", func() bool {
		question := fmt.Sprintf("q%d", answered)
		answer, e := p.Request(ctx, 5*time.Second, primitive.NewMessage(topic, []byte(question)))
		if e == nil && string(answer.Body) == "re: "+question {
			answered++
		}
		return answered == 3
	})
}
