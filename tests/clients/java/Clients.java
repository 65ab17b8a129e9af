// Flows of an ordinary RocketMQ application, each of which checks its own result.
//
//   java -cp <client jars> Clients <name server> <scenario>...
//
// Compiles unchanged against the 4.9 and the 5.x client. Prints one line a scenario, "ok NAME" or
// "FAILED NAME: why", and exits with the number of failures.

import java.io.DataInputStream;
import java.lang.reflect.Method;
import java.net.*;
import java.nio.charset.StandardCharsets;
import java.util.*;
import java.util.concurrent.*;
import java.util.concurrent.atomic.*;
import org.apache.rocketmq.client.QueryResult;
import org.apache.rocketmq.client.consumer.*;
import org.apache.rocketmq.client.consumer.listener.*;
import org.apache.rocketmq.client.producer.*;
import org.apache.rocketmq.client.utils.MessageUtil;
import org.apache.rocketmq.common.consumer.ConsumeFromWhere;
import org.apache.rocketmq.common.message.*;
import org.apache.rocketmq.remoting.netty.*;
import org.apache.rocketmq.remoting.protocol.RemotingCommand;

public final class Clients {
    static String ns;
    static final String RUN = Long.toString(System.currentTimeMillis(), 36);

    interface Scenario { void run() throws Exception; }

    public static void main(String[] args) throws Exception {
        ns = args[0];
        Map<String, Scenario> all = new LinkedHashMap<>();
        all.put("sync", Clients::sync);
        all.put("async", Clients::async);
        all.put("oneway", Clients::oneway);
        all.put("batch", Clients::batch);
        all.put("ordered", Clients::ordered);
        all.put("pull", Clients::pull);
        all.put("rebalance", Clients::rebalance);
        all.put("broadcast", Clients::broadcast);
        all.put("tags", Clients::tags);
        all.put("retry", Clients::retry);
        all.put("query", Clients::query);
        all.put("offsets", Clients::offsets);
        all.put("delay", Clients::delay);
        all.put("transaction", Clients::transaction);
        all.put("request", Clients::request);
        all.put("signoff", Clients::signOff);
        List<String> wanted = new ArrayList<>(Arrays.asList(args).subList(1, args.length));
        if (wanted.isEmpty()) wanted.addAll(all.keySet());
        int failed = 0;
        for (String name : wanted) {
            Scenario s = all.get(name);
            if (s == null) throw new IllegalArgumentException("no scenario " + name + "; there are " + all.keySet());
            long t = System.currentTimeMillis();
            try {
                s.run();
                System.out.println("ok " + name + " (" + (System.currentTimeMillis() - t) + " ms)");
            } catch (Throwable e) {
                failed++;
                System.out.println("FAILED " + name + ": " + e);
                e.printStackTrace(System.out);
            }
        }
        System.exit(failed);
    }

    // ---- helpers

    static void check(boolean ok, String what) {
        if (!ok) throw new AssertionError(what);
    }

    static void same(Object want, Object got, String what) {
        check(Objects.equals(want, got), what + ": want " + want + ", got " + got);
    }

    /** Waits for a condition; the bound only matters when the answer is no. */
    static void until(String what, Condition ok) throws Exception {
        long end = System.currentTimeMillis() + 90_000;
        while (!ok.get()) {
            check(System.currentTimeMillis() < end, "waited 90 s for: " + what);
            Thread.sleep(50);
        }
    }

    interface Condition { boolean get() throws Exception; }

    static DefaultMQProducer producer(String name) throws Exception {
        DefaultMQProducer p = new DefaultMQProducer("pg_" + name + RUN);
        p.setNamesrvAddr(ns);
        p.setInstanceName("p" + name + RUN);
        p.setSendMsgTimeout(10_000);
        p.start();
        return p;
    }

    static String topic(DefaultMQProducer p, String name, int queues) throws Exception {
        String t = "T_" + name + RUN;
        createTopic(p, t, queues);
        until("the route of " + t, () -> {
            try {
                return p.fetchPublishMessageQueues(t).size() == queues;
            } catch (Exception e) {
                return false;
            }
        });
        return t;
    }

    /** 5.0 added a map of attributes to the call. */
    static void createTopic(DefaultMQProducer p, String topic, int queues) throws Exception {
        for (Method m : p.getClass().getMethods()) {
            if (!m.getName().equals("createTopic")) continue;
            Class<?>[] types = m.getParameterTypes();
            if (types.length == 3) m.invoke(p, "TBW102", topic, queues);
            else if (types.length == 4 && types[3] == Map.class) m.invoke(p, "TBW102", topic, queues, new HashMap<>());
            else continue;
            return;
        }
        throw new AssertionError("this client has no createTopic");
    }

    static DefaultMQPushConsumer consumer(String group, String instance) {
        DefaultMQPushConsumer c = new DefaultMQPushConsumer(group);
        c.setNamesrvAddr(ns);
        c.setInstanceName(instance + RUN);
        c.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        return c;
    }

    /** MessageModel moved to another package in 5.0. */
    @SuppressWarnings({"unchecked", "rawtypes"})
    static void broadcasting(DefaultMQPushConsumer c) throws Exception {
        for (Method m : c.getClass().getMethods())
            if (m.getName().equals("setMessageModel")) m.invoke(c, Enum.valueOf((Class<Enum>) m.getParameterTypes()[0], "BROADCASTING"));
    }

    static byte[] bytes(String s) {
        return s.getBytes(StandardCharsets.UTF_8);
    }

    static String text(Message m) {
        return new String(m.getBody(), StandardCharsets.UTF_8);
    }

    /** Everything in a topic, by the pull API, in queue order. */
    static List<MessageExt> readAll(String topic) throws Exception {
        DefaultMQPullConsumer c = new DefaultMQPullConsumer("cg_readall");
        c.setNamesrvAddr(ns);
        c.setInstanceName("ra" + System.nanoTime());
        c.start();
        List<MessageExt> out = new ArrayList<>();
        try {
            Set<MessageQueue> queues = new TreeSet<>(c.fetchSubscribeMessageQueues(topic));
            for (MessageQueue q : queues) {
                long max = c.maxOffset(q), at = c.minOffset(q);
                while (at < max) {
                    PullResult r = c.pull(q, "*", at, 32);
                    if (r.getPullStatus() == PullStatus.FOUND)
                        for (MessageExt m : r.getMsgFoundList()) {
                            same(at, m.getQueueOffset(), "queue offset in " + q);
                            at++;
                            out.add(m);
                        }
                    check(r.getNextBeginOffset() >= at || r.getPullStatus() == PullStatus.FOUND, "pull went back: " + r);
                    at = r.getNextBeginOffset();
                }
            }
        } finally {
            c.shutdown();
        }
        return out;
    }

    static Map<String, MessageExt> byBody(List<MessageExt> list) {
        Map<String, MessageExt> m = new HashMap<>();
        for (MessageExt e : list) check(m.put(text(e), e) == null, "stored twice: " + text(e));
        return m;
    }

    // ---- scenarios

    static void sync() throws Exception {
        DefaultMQProducer p = producer("sync");
        String t = topic(p, "sync", 4);
        Map<MessageQueue, Long> next = new HashMap<>();
        for (int i = 0; i < 60; i++) {
            Message m = new Message(t, "TagA", "key" + i, bytes("消息 " + i));
            m.putUserProperty("色", "红" + i);
            m.setFlag(i);
            SendResult r = p.send(m);
            same(SendStatus.SEND_OK, r.getSendStatus(), "status");
            same(next.getOrDefault(r.getMessageQueue(), 0L), r.getQueueOffset(), "offset in " + r.getMessageQueue());
            next.put(r.getMessageQueue(), r.getQueueOffset() + 1);
            check(r.getOffsetMsgId() != null && r.getOffsetMsgId().length() >= 32, "offset message id " + r.getOffsetMsgId());
        }
        byte[] big = new byte[200_000];
        new Random(1).nextBytes(big);
        Arrays.fill(big, 0, 150_000, (byte) 'x');
        p.send(new Message(t, "TagBig", "big", big)); // the client compresses it
        Map<String, MessageExt> got = new HashMap<>();
        for (MessageExt m : readAll(t)) {
            if ("TagBig".equals(m.getTags())) check(Arrays.equals(big, m.getBody()), "the large body came back changed");
            else got.put(text(m), m);
        }
        same(60, got.size(), "messages");
        for (int i = 0; i < 60; i++) {
            MessageExt m = got.get("消息 " + i);
            same("key" + i, m.getKeys(), "keys");
            same("TagA", m.getTags(), "tags");
            same("红" + i, m.getUserProperty("色"), "property");
            same(i, m.getFlag(), "flag");
        }
        // a topic that nobody created: made from TBW102 at the first send
        String auto = "T_auto" + RUN;
        same(SendStatus.SEND_OK, p.send(new Message(auto, bytes("auto"))).getSendStatus(), "automatic topic");
        p.shutdown();
    }

    static void async() throws Exception {
        DefaultMQProducer p = producer("async");
        String t = topic(p, "async", 4);
        CountDownLatch left = new CountDownLatch(300);
        Queue<Object> problems = new ConcurrentLinkedQueue<>();
        for (int i = 0; i < 300; i++)
            p.send(new Message(t, "TagA", bytes("a" + i)), new SendCallback() {
                public void onSuccess(SendResult r) {
                    if (r.getSendStatus() != SendStatus.SEND_OK) problems.add(r);
                    left.countDown();
                }

                public void onException(Throwable e) {
                    problems.add(e);
                    left.countDown();
                }
            });
        check(left.await(60, TimeUnit.SECONDS), "callbacks missing: " + left.getCount());
        check(problems.isEmpty(), "failed: " + problems.size() + ", first " + problems.peek());
        same(300, byBody(readAll(t)).size(), "messages");
        p.shutdown();
    }

    static void oneway() throws Exception {
        DefaultMQProducer p = producer("oneway");
        String t = topic(p, "oneway", 2);
        for (int i = 0; i < 100; i++) p.sendOneway(new Message(t, "TagA", bytes("o" + i)));
        until("100 one-way messages", () -> readAll(t).size() >= 100);
        same(100, byBody(readAll(t)).size(), "messages");
        p.shutdown();
    }

    static void batch() throws Exception {
        DefaultMQProducer p = producer("batch");
        String t = topic(p, "batch", 2);
        for (int b = 0; b < 5; b++) {
            List<Message> list = new ArrayList<>();
            for (int i = 0; i < 20; i++) list.add(new Message(t, "TagA", "bk" + b + "_" + i, bytes("b" + b + "_" + i)));
            SendResult r = p.send(list);
            same(SendStatus.SEND_OK, r.getSendStatus(), "status");
            same(20, r.getMsgId().split(",").length, "unique keys of a batch");
            same(20, r.getOffsetMsgId().split(",").length, "message ids of a batch");
        }
        Map<String, MessageExt> got = byBody(readAll(t));
        same(100, got.size(), "messages");
        for (int b = 0; b < 5; b++)
            for (int i = 1; i < 20; i++) {
                MessageExt m = got.get("b" + b + "_" + i), before = got.get("b" + b + "_" + (i - 1));
                same(before.getQueueId(), m.getQueueId(), "queue of a batch");
                same(before.getQueueOffset() + 1, m.getQueueOffset(), "offsets of a batch");
                same("bk" + b + "_" + i, m.getKeys(), "keys of a batch");
            }
        p.shutdown();
    }

    static void ordered() throws Exception {
        DefaultMQProducer p = producer("ordered");
        String t = topic(p, "ordered", 4);
        int orders = 10, steps = 30;
        for (int s = 0; s < steps; s++)
            for (int o = 0; o < orders; o++)
                same(SendStatus.SEND_OK, p.send(new Message(t, "TagA", bytes(o + ":" + s)), (queues, m, arg) -> queues.get((Integer) arg % queues.size()), o).getSendStatus(), "status");
        Map<Integer, List<Integer>> seen = new ConcurrentHashMap<>();
        AtomicInteger total = new AtomicInteger();
        List<DefaultMQPushConsumer> members = new ArrayList<>();
        for (int k = 0; k < 2; k++) {
            DefaultMQPushConsumer c = consumer("cg_ordered" + RUN, "ord" + k);
            c.subscribe(t, "*");
            c.registerMessageListener((MessageListenerOrderly) (list, ctx) -> {
                for (MessageExt m : list) {
                    String[] f = text(m).split(":");
                    seen.computeIfAbsent(Integer.valueOf(f[0]), x -> Collections.synchronizedList(new ArrayList<>())).add(Integer.valueOf(f[1]));
                    total.incrementAndGet();
                }
                return ConsumeOrderlyStatus.SUCCESS;
            });
            c.start();
            members.add(c);
        }
        until("all ordered messages", () -> total.get() >= orders * steps);
        for (DefaultMQPushConsumer c : members) c.shutdown();
        for (int o = 0; o < orders; o++) {
            // a queue that changes hands may be repeated from the last commit, but never out of order
            List<Integer> first = new ArrayList<>(new LinkedHashSet<>(seen.get(o)));
            for (int s = 0; s < steps; s++) same(s, first.get(s), "step of order " + o + " in " + seen.get(o));
        }
        p.shutdown();
    }

    static void pull() throws Exception {
        DefaultMQProducer p = producer("pull");
        String t = topic(p, "pull", 2);
        for (int i = 0; i < 50; i++) p.send(new Message(t, i % 2 == 0 ? "Even" : "Odd", bytes("p" + i)));
        DefaultLitePullConsumer c = new DefaultLitePullConsumer("cg_lite" + RUN);
        c.setNamesrvAddr(ns);
        c.setInstanceName("lite" + RUN);
        c.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        c.subscribe(t, "Even");
        c.start();
        Set<String> got = new HashSet<>();
        until("25 messages by lite pull", () -> {
            for (MessageExt m : c.poll(1000)) got.add(text(m));
            return got.size() >= 25;
        });
        for (int i = 0; i < 50; i += 2) check(got.contains("p" + i), "p" + i + " is missing");
        c.shutdown();
        DefaultMQPullConsumer q = new DefaultMQPullConsumer("cg_pull" + RUN);
        q.setNamesrvAddr(ns);
        q.setInstanceName("pull" + RUN);
        q.start();
        MessageQueue mq = new TreeSet<>(q.fetchSubscribeMessageQueues(t)).first();
        long max = q.maxOffset(mq);
        same(PullStatus.NO_NEW_MSG, q.pull(mq, "*", max, 32).getPullStatus(), "pull at the end");
        same(PullStatus.OFFSET_ILLEGAL, q.pull(mq, "*", max + 1000, 32).getPullStatus(), "pull beyond the end");
        same(0L, q.searchOffset(mq, 0), "offset at time 0");
        same(max, q.searchOffset(mq, System.currentTimeMillis() + 3_600_000), "offset in the future");
        check(q.earliestMsgStoreTime(mq) > System.currentTimeMillis() - 3_600_000, "earliest store time");
        q.updateConsumeOffset(mq, 7);
        q.getOffsetStore().persist(mq);
        until("the offset that was committed", () -> q.fetchConsumeOffset(mq, true) == 7);
        q.shutdown();
        p.shutdown();
    }

    static void rebalance() throws Exception {
        DefaultMQProducer p = producer("reb");
        String t = topic(p, "reb", 8);
        String group = "cg_reb" + RUN;
        List<Set<String>> seen = new ArrayList<>();
        List<DefaultMQPushConsumer> members = new ArrayList<>();
        for (int k = 0; k < 2; k++) {
            Set<String> mine = ConcurrentHashMap.newKeySet();
            seen.add(mine);
            DefaultMQPushConsumer c = consumer(group, "reb" + k);
            c.subscribe(t, "*");
            c.registerMessageListener((MessageListenerConcurrently) (list, ctx) -> {
                for (MessageExt m : list) mine.add(text(m));
                return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
            });
            c.start();
            members.add(c);
        }
        // both members own queues once each has been given a message
        int sent = 0;
        long end = System.currentTimeMillis() + 90_000;
        while (seen.get(0).isEmpty() || seen.get(1).isEmpty()) {
            check(System.currentTimeMillis() < end, "one member of the group never got a queue");
            p.send(new Message(t, bytes("r" + sent++)));
            Thread.sleep(10);
        }
        int n = sent;
        until("every message", () -> union(seen).size() == n);
        members.get(1).shutdown();
        for (int i = 0; i < 100; i++) p.send(new Message(t, bytes("r" + sent++)));
        int m = sent;
        until("every message after a member left", () -> union(seen).size() == m);
        members.get(0).shutdown();
        p.shutdown();
    }

    static Set<String> union(List<Set<String>> sets) {
        Set<String> u = new HashSet<>();
        for (Set<String> s : sets) u.addAll(s);
        return u;
    }

    static void broadcast() throws Exception {
        DefaultMQProducer p = producer("bc");
        String t = topic(p, "bc", 4);
        List<Set<String>> seen = new ArrayList<>();
        List<DefaultMQPushConsumer> members = new ArrayList<>();
        for (int k = 0; k < 2; k++) {
            Set<String> mine = ConcurrentHashMap.newKeySet();
            seen.add(mine);
            DefaultMQPushConsumer c = consumer("cg_bc" + RUN, "bc" + k);
            broadcasting(c);
            c.subscribe(t, "*");
            c.registerMessageListener((MessageListenerConcurrently) (list, ctx) -> {
                for (MessageExt m : list) mine.add(text(m));
                return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
            });
            c.start();
            members.add(c);
        }
        for (int i = 0; i < 50; i++) p.send(new Message(t, bytes("x" + i)));
        until("every message at every member", () -> seen.get(0).size() == 50 && seen.get(1).size() == 50);
        for (DefaultMQPushConsumer c : members) c.shutdown();
        p.shutdown();
    }

    static void tags() throws Exception {
        DefaultMQProducer p = producer("tags");
        String t = topic(p, "tags", 4);
        String[] tags = {"TagA", "TagB", "TagC", "标签", null};
        for (int i = 0; i < 100; i++) p.send(new Message(t, tags[i % 5], bytes(tags[i % 5] + ":" + i)));
        Set<String> got = ConcurrentHashMap.newKeySet();
        DefaultMQPushConsumer c = consumer("cg_tags" + RUN, "tags");
        c.subscribe(t, "TagA || 标签");
        c.registerMessageListener((MessageListenerConcurrently) (list, ctx) -> {
            for (MessageExt m : list) got.add(text(m));
            return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
        });
        c.start();
        until("40 messages of two tags", () -> got.size() >= 40);
        for (int i = 0; i < 100; i++) same(i % 5 == 0 || i % 5 == 3, got.contains(tags[i % 5] + ":" + i), "delivered " + tags[i % 5] + ":" + i);
        c.shutdown();
        p.shutdown();
    }

    static void retry() throws Exception {
        DefaultMQProducer p = producer("retry");
        String t = topic(p, "retry", 2);
        String group = "cg_retry" + RUN;
        for (int i = 0; i < 6; i++) p.send(new Message(t, "TagA", "rk" + i, bytes("y" + i)));
        Map<String, List<Integer>> tries = new ConcurrentHashMap<>();
        DefaultMQPushConsumer c = consumer(group, "retry");
        c.setMaxReconsumeTimes(2);
        c.subscribe(t, "*");
        c.registerMessageListener((MessageListenerConcurrently) (list, ctx) -> {
            for (MessageExt m : list) {
                tries.computeIfAbsent(text(m), k -> Collections.synchronizedList(new ArrayList<>())).add(m.getReconsumeTimes());
                if (!m.getTopic().equals(t)) return ConsumeConcurrentlyStatus.RECONSUME_LATER; // the client restores the real topic
            }
            ctx.setDelayLevelWhenNextConsume(1);
            // y0 and y1 succeed at the second try, the others never
            MessageExt m = list.get(0);
            return m.getReconsumeTimes() > 0 && text(m).compareTo("y2") < 0 ? ConsumeConcurrentlyStatus.CONSUME_SUCCESS : ConsumeConcurrentlyStatus.RECONSUME_LATER;
        });
        c.start();
        String dlq = "%DLQ%" + group;
        until("four messages in " + dlq, () -> {
            try {
                return readAll(dlq).size() >= 4;
            } catch (Exception notYetThere) {
                return false;
            }
        });
        c.shutdown();
        Map<String, MessageExt> dead = byBody(readAll(dlq));
        same(new TreeSet<>(Arrays.asList("y2", "y3", "y4", "y5")), new TreeSet<>(dead.keySet()), "dead letters");
        for (int i = 0; i < 6; i++) {
            List<Integer> want = i < 2 ? Arrays.asList(0, 1) : Arrays.asList(0, 1, 2);
            same(want, tries.get("y" + i), "tries of y" + i);
        }
        same(t, dead.get("y3").getProperty("RETRY_TOPIC"), "RETRY_TOPIC of a dead letter");
        p.shutdown();
    }

    static void query() throws Exception {
        DefaultMQProducer p = producer("query");
        String t = topic(p, "query", 4);
        SendResult last = null;
        for (int i = 0; i < 30; i++) last = p.send(new Message(t, "TagA", "qk" + i + " shared" + RUN, bytes("q" + i)));
        SendResult sent = last;
        long now = System.currentTimeMillis();
        until("the index", () -> {
            try {
                return p.queryMessage(t, "shared" + RUN, 64, now - 600_000, now + 600_000).getMessageList().size() == 30;
            } catch (Exception none) {
                return false;
            }
        });
        QueryResult one = p.queryMessage(t, "qk7", 32, now - 600_000, now + 600_000);
        same(1, one.getMessageList().size(), "messages with key qk7");
        same("q7", text(one.getMessageList().get(0)), "message with key qk7");
        same("q29", text(p.viewMessage(t, sent.getOffsetMsgId())), "by message id");
        same("q29", text(p.viewMessage(t, sent.getMsgId())), "by unique key");
        boolean none = false;
        try {
            p.queryMessage(t, "nobody", 32, now - 600_000, now + 600_000);
        } catch (Exception e) {
            none = true;
        }
        check(none, "a key that nobody sent was found");
        p.shutdown();
    }

    static void offsets() throws Exception {
        DefaultMQProducer p = producer("off");
        String t = topic(p, "off", 4);
        String group = "cg_off" + RUN;
        int sent = 0;
        Set<String> all = new HashSet<>();
        for (int round = 0; round < 2; round++) {
            for (int i = 0; i < 40; i++) p.send(new Message(t, bytes("z" + sent++)));
            Set<String> got = ConcurrentHashMap.newKeySet();
            DefaultMQPushConsumer c = consumer(group, "off" + round);
            c.subscribe(t, "*");
            c.registerMessageListener((MessageListenerConcurrently) (list, ctx) -> {
                for (MessageExt m : list) got.add(text(m));
                return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
            });
            c.start();
            int n = sent;
            until("40 messages in round " + round, () -> got.contains("z" + (n - 1)) && got.size() >= 40);
            c.shutdown(); // commits what was consumed
            for (String s : got) check(all.add(s), s + " was delivered again although its offset was committed");
        }
        same(80, all.size(), "messages");
        p.shutdown();
    }

    static void delay() throws Exception {
        DefaultMQProducer p = producer("delay");
        String t = topic(p, "delay", 2);
        Map<String, Long> at = new ConcurrentHashMap<>();
        DefaultMQPushConsumer c = consumer("cg_delay" + RUN, "delay");
        c.subscribe(t, "*");
        c.registerMessageListener((MessageListenerConcurrently) (list, ctx) -> {
            for (MessageExt m : list) at.put(text(m), System.currentTimeMillis());
            return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
        });
        c.start();
        long sent = System.currentTimeMillis();
        Message m = new Message(t, bytes("late"));
        m.setDelayTimeLevel(2);
        p.send(m);
        until("the delayed message", () -> at.containsKey("late"));
        check(at.get("late") - sent >= 5_000, "came after " + (at.get("late") - sent) + " ms, want 5 s");
        same(1, readAll(t).size(), "messages");
        c.shutdown();
        p.shutdown();
    }

    /** Committed at once and when the broker asks, rolled back at once and when it asks. */
    static void transaction() throws Exception {
        TransactionMQProducer p = new TransactionMQProducer("pg_transaction" + RUN);
        p.setNamesrvAddr(ns);
        p.setInstanceName("ptransaction" + RUN);
        p.setSendMsgTimeout(10_000);
        Map<String, Integer> asked = new ConcurrentHashMap<>();
        p.setTransactionListener(new TransactionListener() {
            LocalTransactionState of(String text) {
                return text.startsWith("commit") ? LocalTransactionState.COMMIT_MESSAGE : LocalTransactionState.ROLLBACK_MESSAGE;
            }

            public LocalTransactionState executeLocalTransaction(Message m, Object arg) {
                return text(m).endsWith("later") ? LocalTransactionState.UNKNOW : of(text(m));
            }

            public LocalTransactionState checkLocalTransaction(MessageExt m) {
                asked.merge(text(m), 1, Integer::sum);
                return of(text(m));
            }
        });
        p.start();
        String t = topic(p, "transaction", 2);
        List<String> arrived = new CopyOnWriteArrayList<>();
        DefaultMQPushConsumer c = consumer("cg_transaction" + RUN, "transaction");
        c.subscribe(t, "a");
        c.registerMessageListener((MessageListenerConcurrently) (list, ctx) -> {
            for (MessageExt m : list) {
                check(m.getTransactionId() != null && m.getTransactionId().equals(m.getProperty("UNIQ_KEY")), "the id of the transaction");
                arrived.add(text(m));
            }
            return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
        });
        c.start();
        for (int i = 0; i < 10; i++)
            for (String how : Arrays.asList("commit", "rollback"))
                for (String when : Arrays.asList("now", "later"))
                    same(SendStatus.SEND_OK, p.sendMessageInTransaction(new Message(t, "a", bytes(how + i + when)), null).getSendStatus(), "the status");
        until("what is committed", () -> arrived.size() >= 20);
        until("questions for what was rolled back later", () -> asked.keySet().stream().filter(text -> text.startsWith("rollback")).count() == 10);
        same(20, readAll(t).size(), "messages");
        same(20L, arrived.stream().filter(text -> text.startsWith("commit")).distinct().count(), "committed messages that arrived");
        check(asked.keySet().stream().allMatch(text -> text.endsWith("later")), "asked for what was told: " + asked);
        c.shutdown();
        p.shutdown();
    }

    /** Requests among clients, each answered by its consumer and given to whoever asked. */
    static void request() throws Exception {
        DefaultMQProducer p = producer("request"), answering = producer("answer");
        String t = topic(p, "request", 2);
        DefaultMQPushConsumer c = consumer("cg_request" + RUN, "request");
        c.subscribe(t, "*");
        c.registerMessageListener((MessageListenerConcurrently) (list, ctx) -> {
            try {
                for (MessageExt m : list) answering.send(MessageUtil.createReplyMessage(m, bytes("re: " + text(m))));
            } catch (Exception e) {
                return ConsumeConcurrentlyStatus.RECONSUME_LATER;
            }
            return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
        });
        c.start();
        for (int i = 0; i < 5; i++) same("re: q" + i, text(p.request(new Message(t, bytes("q" + i)), 60_000)), "the answer");
        CompletableFuture<Object> late = new CompletableFuture<>();
        p.request(new Message(t, bytes("async")), new RequestCallback() {
            public void onSuccess(Message m) {
                late.complete(text(m));
            }

            public void onException(Throwable e) {
                late.complete(e);
            }
        }, 60_000);
        same("re: async", late.get(90, TimeUnit.SECONDS), "the answer");
        c.shutdown();
        answering.shutdown();
        p.shutdown();
    }

    /** What a stopping broker of ours relies on: bytes that do not decode have the client close the connection and
     * fail all that waits there, long before its timeout. */
    static void signOff() throws Exception {
        NettyRemotingClient client = new NettyRemotingClient(new NettyClientConfig());
        client.start();
        try (ServerSocket server = new ServerSocket(0, 8, InetAddress.getByName("127.0.0.1"))) {
            String address = "127.0.0.1:" + server.getLocalPort();
            List<CompletableFuture<Throwable>> sends = new ArrayList<>();
            for (int i = 0; i < 8; i++) {
                CompletableFuture<Throwable> end = new CompletableFuture<>();
                sends.add(end);
                new Thread(() -> {
                    try {
                        client.invokeSync(address, RemotingCommand.createRequestCommand(10, null), 600_000);
                        end.complete(new AssertionError("it was answered"));
                    } catch (Throwable e) {
                        end.complete(e);
                    }
                }).start();
            }
            try (Socket peer = server.accept()) {
                for (int i = 0; i < 8; i++) {
                    int length = new DataInputStream(peer.getInputStream()).readInt();
                    same(length, peer.getInputStream().readNBytes(length).length, "bytes of a request");
                }
                peer.getOutputStream().write(new byte[] {0, 0, 0, 4, 0, 0, 0, 1});
                same(-1, peer.getInputStream().read(), "what comes after the sign-off");
                for (CompletableFuture<Throwable> end : sends) {
                    String error = end.get(90, TimeUnit.SECONDS).getClass().getSimpleName();
                    check(error.startsWith("Remoting"), "it ended with " + error);
                }
            }
        } finally {
            client.shutdown();
        }
    }
}
