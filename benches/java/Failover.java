// An ordinary application on the unmodified Java client while somebody breaks the cluster under it, and what
// it saw: sends that failed, the longest silence of its producers and consumers, messages lost, repeated or
// out of order. Compiles unchanged against 4.9 and 5.x.
//
//   Failover <name server> <topic> <ordered topic> <sends a second> [poll=<ms between looks for routes>] [avoid=true]
//       [transactions=true]
//
// 8 threads send at the rate in all, by the default settings; 2 more send 48 ordered keys by a selector, a fifth
// of that, and try a key again after 100 ms until it is accepted, as an application that keeps order has to.
// With transactions=true the 8 threads send transactional messages, which are committed at once; one whose send failed is
// rolled back when the broker asks.
// On standard input: "mark [HOST:PORT]" = a fault follows, which strikes the node there, if it is one (answered
// "marked"), "struck NANOSECONDS" = when it had, by the machine's clock (answered "noted"), "report" = one JSON line of
// what was seen since the mark, "stop" = no more sends, wait for the consumers, one JSON line of what was lost or
// repeated. In flight are sends that were begun before the fault had struck: a process that is killed takes
// milliseconds to be gone, in which its connections take requests.

import java.io.*;
import java.lang.reflect.Field;
import java.nio.charset.StandardCharsets;
import java.time.Instant;
import java.time.temporal.ChronoUnit;
import java.util.*;
import java.util.concurrent.*;
import java.util.concurrent.atomic.*;
import java.util.concurrent.locks.LockSupport;
import java.util.function.Consumer;
import java.util.function.IntConsumer;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.*;
import org.apache.rocketmq.client.exception.MQClientException;
import org.apache.rocketmq.client.impl.FindBrokerResult;
import org.apache.rocketmq.client.impl.consumer.PullAPIWrapper;
import org.apache.rocketmq.client.producer.*;
import org.apache.rocketmq.common.consumer.ConsumeFromWhere;
import org.apache.rocketmq.common.message.*;

public final class Failover {
    static final int THREADS = 8, KEYS = 48, ORDERED_THREADS = 2;
    static final Map<String, String> options = new HashMap<>();
    static volatile boolean stopping;

    /** One send, in nanoseconds. */
    static final class Send {
        final long begun = System.nanoTime();
        final int thread;
        volatile long ended;
        volatile String error;

        Send(int thread) { this.thread = thread; }
    }

    /** What happened since the mark; a new one with each mark. */
    static final class Window {
        final long from = System.nanoTime();
        /** When the fault had struck. */
        volatile long struck = from;
        /** Plain sends that were begun in it, and ordered ones that ended in it. */
        final Queue<Send> sends = new ConcurrentLinkedQueue<>(), ordered = new ConcurrentLinkedQueue<>();
        final Queue<Long> acks = new ConcurrentLinkedQueue<>(), arrivals = new ConcurrentLinkedQueue<>();
        /** The longest time from acknowledgement, but no earlier than the mark, to arrival, by queue. */
        final Map<Integer, Long> lags = new ConcurrentHashMap<>();
        /** Queues that are read from the node that is struck, by their ids. */
        Set<Integer> ofStruck = Set.of();
        final int twiceBefore = storedTwice.get(), againBefore = redelivered.get(), disorderBefore = disorder.get();
    }

    static final Set<Send> flying = ConcurrentHashMap.newKeySet();
    /** What became of the messages of each thread, and then of each key. */
    static final Fates[] fates = new Fates[THREADS + KEYS];
    static final AtomicInteger redelivered = new AtomicInteger(), storedTwice = new AtomicInteger(), disorder = new AtomicInteger();
    static final int[] newest = new int[KEYS];
    static volatile Window window = new Window();

    /** What became of the messages with the numbers from 0 on: arrays of numbers, for a collector that has to follow a
     * few objects for each message stops the application for longer than a failover takes. */
    static final class Fates {
        static final byte ACKED = 1, FAILED = 2;
        /** Messages that are acknowledged and have not arrived: queue and nanoseconds. */
        final Map<Integer, long[]> underWay = new HashMap<>();
        private byte[] outcomes = new byte[1024];
        /** Where each has first arrived, as place() has it, or 0; and the further places of those that have some. */
        private long[] first = new long[1024];
        private final Map<Integer, Set<Long>> further = new HashMap<>();

        private void reach(int number) {
            if (number < first.length) return;
            outcomes = Arrays.copyOf(outcomes, 2 * number);
            first = Arrays.copyOf(first, 2 * number);
        }

        synchronized void acked(int number, int queue, long at) {
            reach(number);
            outcomes[number] |= ACKED;
            // It may arrive before its acknowledgement does.
            if (first[number] == 0) underWay.put(number, new long[] {queue, at});
        }

        synchronized void failed(int number) {
            reach(number);
            outcomes[number] |= FAILED;
        }

        /** Whether this was its first arrival; if it was and the acknowledgement came before, calls `waited` with that. */
        synchronized boolean arrived(int number, long place, Consumer<long[]> waited) {
            reach(number);
            if (first[number] == 0) {
                first[number] = place;
                long[] ack = underWay.remove(number);
                if (ack != null) waited.accept(ack);
                return true;
            }
            boolean newPlace = first[number] != place && further.computeIfAbsent(number, n -> new HashSet<>()).add(place);
            (newPlace ? storedTwice : redelivered).incrementAndGet();
            return false;
        }

        static long place(MessageExt m) { return (m.getQueueId() + 1L) << 48 | m.getQueueOffset(); }

        /** How many were acknowledged, have not arrived although they were, and have arrived although all sends failed. */
        synchronized int[] counts() {
            int[] counts = new int[3];
            for (int n = 0; n < first.length; n++) {
                boolean acked = (outcomes[n] & ACKED) != 0;
                if (acked) counts[0]++;
                if (acked && first[n] == 0) counts[1]++;
                if (outcomes[n] == FAILED && first[n] != 0) counts[2]++;
            }
            return counts;
        }
    }

    public static void main(String[] a) {
        int status = 0;
        try {
            application(a);
        } catch (Throwable e) {
            e.printStackTrace();
            status = 1;
        }
        // Threads of the clients would live on.
        System.exit(status);
    }

    static void application(String[] a) throws Exception {
        for (String o : Arrays.copyOfRange(a, 4, a.length)) options.put(o.split("=")[0], o.split("=")[1]);
        int rate = Integer.parseInt(a[3]);
        String run = Long.toString(System.currentTimeMillis(), 36);
        DefaultMQProducer p = producer(a[0], "plain" + run, options.containsKey("transactions")), o = producer(a[0], "ordered" + run, false);
        Arrays.fill(newest, -1);
        Arrays.setAll(fates, i -> new Fates());
        DefaultMQPushConsumer plain = consumer(a[0], a[1], "cp" + run, run, false);
        consumer(a[0], a[2], "co" + run, run, true);
        List<Thread> threads = new ArrayList<>();
        for (int t = 0; t < THREADS; t++) threads.add(new Thread(plain(p, a[1], run, t, rate)));
        for (int t = 0; t < ORDERED_THREADS; t++) threads.add(new Thread(ordered(o, a[2], run, t, rate / 5)));
        for (Thread t : threads) t.start();
        System.out.println("{\"started\":1}");
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in));
        Set<Send> atMark = new HashSet<>();
        for (String line; (line = in.readLine()) != null; ) {
            if (line.startsWith("mark")) {
                Window next = new Window();
                next.ofStruck = readFrom(plain, line.substring(4).trim());
                window = next;
                atMark = new HashSet<>(flying);
                System.out.println("{\"marked\":1}");
            } else if (line.startsWith("struck ")) {
                window.struck = System.nanoTime() - ChronoUnit.NANOS.between(Instant.EPOCH, Instant.now()) + Long.parseLong(line.substring(7));
                System.out.println("{\"noted\":1}");
            } else if (line.equals("report")) {
                report(window, atMark);
            } else if (line.equals("stop")) {
                stopping = true;
                for (Thread t : threads) t.join();
                end();
                break;
            }
            System.out.flush();
        }
    }

    /** Its transactions are committed; those that were not begun, for their sends failed, are rolled back. */
    static DefaultMQProducer transactional(String group) {
        TransactionMQProducer p = new TransactionMQProducer(group);
        Set<String> begun = ConcurrentHashMap.newKeySet();
        p.setTransactionListener(new TransactionListener() {
            public LocalTransactionState executeLocalTransaction(Message m, Object arg) {
                begun.add(new String(m.getBody(), StandardCharsets.UTF_8));
                return LocalTransactionState.COMMIT_MESSAGE;
            }

            public LocalTransactionState checkLocalTransaction(MessageExt m) {
                boolean isBegun = begun.contains(new String(m.getBody(), StandardCharsets.UTF_8));
                return isBegun ? LocalTransactionState.COMMIT_MESSAGE : LocalTransactionState.ROLLBACK_MESSAGE;
            }
        });
        return p;
    }

    static DefaultMQProducer producer(String ns, String group, boolean isTransactional) throws Exception {
        DefaultMQProducer p = isTransactional ? transactional(group) : new DefaultMQProducer(group);
        p.setNamesrvAddr(ns);
        p.setInstanceName(group);
        if (options.containsKey("poll")) p.setPollNameServerInterval(Integer.parseInt(options.get("poll")));
        p.setSendLatencyFaultEnable(options.containsKey("avoid"));
        p.start();
        return p;
    }

    /** Looking for the route once, with a time limit, is part of a start; a machine that is starting more may be late. */
    static DefaultMQPushConsumer consumer(String ns, String topic, String group, String run, boolean orderly) throws Exception {
        for (int tries = 1; ; tries++) {
            DefaultMQPushConsumer c = idle(ns, topic, group, run, orderly);
            try {
                c.start();
                return c;
            } catch (IllegalStateException | MQClientException e) {
                if (tries == 5) throw e;
                c.shutdown();
            }
        }
    }

    static DefaultMQPushConsumer idle(String ns, String topic, String group, String run, boolean orderly) throws Exception {
        DefaultMQPushConsumer c = new DefaultMQPushConsumer(group);
        c.setNamesrvAddr(ns);
        c.setInstanceName(group);
        if (options.containsKey("poll")) c.setPollNameServerInterval(Integer.parseInt(options.get("poll")));
        c.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        c.subscribe(topic, "*");
        if (orderly)
            c.registerMessageListener((MessageListenerOrderly) (list, x) -> {
                for (MessageExt m : list) if (see(m, run)) inOrder(m);
                return ConsumeOrderlyStatus.SUCCESS;
            });
        else
            c.registerMessageListener((MessageListenerConcurrently) (list, x) -> {
                for (MessageExt m : list) see(m, run);
                return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
            });
        return c;
    }

    /** The queues that the consumer pulls from an address. */
    static Set<Integer> readFrom(DefaultMQPushConsumer c, String address) throws Exception {
        Object impl = c.getDefaultMQPushConsumerImpl();
        Field field = impl.getClass().getDeclaredField("pullAPIWrapper");
        field.setAccessible(true);
        PullAPIWrapper pulls = (PullAPIWrapper) field.get(impl);
        Set<Integer> queues = new HashSet<>();
        for (MessageQueue q : c.getDefaultMQPushConsumerImpl().getRebalanceImpl().getProcessQueueTable().keySet()) {
            long id = pulls.recalculatePullFromWhichNode(q);
            FindBrokerResult from = c.getDefaultMQPushConsumerImpl().getmQClientFactory().findBrokerAddressInSubscribe(q.getBrokerName(), id, false);
            if (!q.getTopic().startsWith("%") && from != null && from.getBrokerAddr().equals(address)) queues.add(q.getQueueId());
        }
        return queues;
    }

    /** Whether the message is of this run and was not seen before. */
    static boolean see(MessageExt m, String run) {
        String text = new String(m.getBody(), StandardCharsets.UTF_8);
        if (!text.startsWith(run + ":")) return false;
        String[] f = text.split(":");
        boolean isPlain = f[1].equals("p");
        Window w = window;
        long now = System.nanoTime();
        if (isPlain) w.arrivals.add(now);
        return fates(isPlain, Integer.parseInt(f[2])).arrived(Integer.parseInt(f[3]), Fates.place(m), ack -> {
            if (isPlain) w.lags.merge(m.getQueueId(), now - Math.max(ack[1], w.from), Math::max);
        });
    }

    static Fates fates(boolean isPlain, int threadOrKey) { return fates[isPlain ? threadOrKey : THREADS + threadOrKey]; }

    static void inOrder(MessageExt m) {
        String[] f = new String(m.getBody(), StandardCharsets.UTF_8).split(":");
        int key = Integer.parseInt(f[2]), number = Integer.parseInt(f[3]);
        synchronized (newest) {
            if (number < newest[key]) disorder.incrementAndGet();
            newest[key] = Math.max(newest[key], number);
        }
    }

    static Runnable plain(DefaultMQProducer p, String topic, String run, int thread, int rate) {
        return () -> {
            long period = THREADS * 1_000_000_000L / rate, due = System.nanoTime() + thread * period / THREADS;
            for (int n = 0; !stopping; n++, due = Math.max(due + period, System.nanoTime() - period)) {
                for (long left; (left = due - System.nanoTime()) > 0; ) LockSupport.parkNanos(left);
                send(p, new Message(topic, bytes(run + ":p:" + thread + ":" + n)), true, thread, n);
            }
        };
    }

    static Runnable ordered(DefaultMQProducer p, String topic, String run, int thread, int rate) {
        return () -> {
            int mine = KEYS / ORDERED_THREADS;
            int[] next = new int[mine];
            // When to try again what has failed; 0 if nothing has.
            long[] again = new long[mine];
            long period = ORDERED_THREADS * 1_000_000_000L / rate, due = System.nanoTime();
            IntConsumer attempt = k -> {
                int key = thread * mine + k;
                boolean ok = send(p, new Message(topic, bytes(run + ":o:" + key + ":" + next[k])), false, key, next[k]);
                if (ok) next[k]++;
                again[k] = ok ? 0 : System.nanoTime() + 100_000_000L;
            };
            for (int at = 0; !stopping; due = Math.max(due + period, System.nanoTime() - period)) {
                for (long left; (left = due - System.nanoTime()) > 0; ) LockSupport.parkNanos(left);
                for (int k = 0; k < mine; k++) if (again[k] != 0 && System.nanoTime() >= again[k]) attempt.accept(k);
                // And the next key that does not wait.
                for (int n = 0; n < mine; n++) {
                    at = (at + 1) % mine;
                    if (again[at] != 0) continue;
                    attempt.accept(at);
                    break;
                }
            }
        };
    }

    /** Plain sends are reported one by one; the others go by their key. */
    static boolean send(DefaultMQProducer p, Message m, boolean isPlain, int threadOrKey, int number) {
        Send s = new Send(threadOrKey);
        if (isPlain) flying.add(s);
        Fates of = fates(isPlain, threadOrKey);
        try {
            SendResult r = p instanceof TransactionMQProducer ? p.sendMessageInTransaction(m, null)
                : isPlain ? p.send(m) : p.send(m, (queues, msg, arg) -> queues.get((Integer) arg % queues.size()), threadOrKey);
            if (r.getSendStatus() == SendStatus.SEND_OK) of.acked(number, r.getMessageQueue().getQueueId(), System.nanoTime());
            else s.error = r.getSendStatus().toString();
        } catch (Exception e) {
            s.error = e.getClass().getSimpleName() + ": " + e.getMessage();
        }
        s.ended = System.nanoTime();
        boolean ok = s.error == null;
        if (!ok) of.failed(number);
        Window now = window;
        if (isPlain) {
            if (ok) now.acks.add(s.ended);
            if (s.begun >= now.from) now.sends.add(s);
            flying.remove(s);
        } else {
            now.ordered.add(s);
        }
        return ok;
    }

    static byte[] bytes(String s) { return s.getBytes(StandardCharsets.UTF_8); }

    static double ms(long ns) { return ns / 1e6; }

    /** The longest silence from the mark to now. */
    static double gap(long from, Collection<Long> times) {
        long[] sorted = times.stream().mapToLong(t -> t).sorted().toArray();
        long last = from, longest = 0;
        for (long t : sorted) { longest = Math.max(longest, t - last); last = Math.max(last, t); }
        return ms(Math.max(longest, System.nanoTime() - last));
    }

    static void report(Window w, Set<Send> atMark) {
        long now = System.nanoTime();
        int bad = 0, badFlying = 0;
        long slowestFlying = 0, slowest = 0;
        int[] badOf = new int[THREADS];
        Map<String, Integer> errors = new TreeMap<>();
        Set<Send> inFlight = new HashSet<>(atMark);
        List<Send> sends = new ArrayList<>();
        for (Send s : w.sends) (s.begun < w.struck ? inFlight : sends).add(s);
        for (Send s : sends) {
            slowest = Math.max(slowest, s.ended - s.begun);
            if (s.error != null) { bad++; badOf[s.thread]++; errors.merge(brief(s.error), 1, Integer::sum); }
        }
        for (Send s : inFlight) {
            slowestFlying = Math.max(slowestFlying, (s.ended == 0 ? now : s.ended) - w.from);
            if (s.error != null || s.ended == 0) { badFlying++; badOf[s.thread]++; errors.merge("in flight: " + brief(s.error), 1, Integer::sum); }
        }
        for (Fates of : Arrays.asList(fates).subList(0, THREADS)) {
            synchronized (of) {
                for (long[] ack : of.underWay.values()) w.lags.merge((int) ack[0], now - Math.max(ack[1], w.from), Math::max);
            }
        }
        long ofStruck = 0, ofLiving = 0;
        for (Map.Entry<Integer, Long> lag : w.lags.entrySet()) {
            if (w.ofStruck.contains(lag.getKey())) ofStruck = Math.max(ofStruck, lag.getValue());
            else ofLiving = Math.max(ofLiving, lag.getValue());
        }
        int attempts = 0, badAttempts = 0, waiting = 0;
        long keyFlying = 0, longest = 0;
        long[] since = new long[KEYS], waited = new long[KEYS];
        // The attempts of one key in their order.
        for (Send s : w.ordered) {
            int key = s.thread;
            if (s.begun < w.struck) {
                keyFlying = Math.max(keyFlying, s.ended - Math.max(s.begun, w.from));
                continue;
            }
            attempts++;
            if (since[key] == 0) since[key] = s.begun;
            waited[key] = Math.max(waited[key], s.ended - since[key]);
            if (s.error == null) since[key] = 0;
            else badAttempts++;
        }
        for (long t : waited) { if (t > 1_500_000_000L) waiting++; longest = Math.max(longest, t); }
        System.out.println(String.format(Locale.ROOT,
            "{\"seconds\":%.1f,\"sends\":%d,\"failed\":%d,\"failed_of_thread\":%d,\"in_flight\":%d,\"in_flight_failed\":%d,\"in_flight_ms\":%.0f,\"slowest_ms\":%.0f,"
            + "\"send_gap_ms\":%.0f,\"consume_gap_ms\":%.0f,\"living_lag_ms\":%.0f,\"struck_queues\":%d,\"struck_lag_ms\":%.0f,\"keys_waiting\":%d,\"key_wait_ms\":%.0f,\"ordered\":%d,\"ordered_failed\":%d,\"in_flight_key_ms\":%.0f,\"stored_twice\":%d,\"redelivered\":%d,\"out_of_order\":%d,\"errors\":%s}",
            ms(now - w.from) / 1000, sends.size(), bad, Arrays.stream(badOf).max().getAsInt(), inFlight.size(), badFlying, ms(slowestFlying), ms(slowest), gap(w.from, w.acks),
            gap(w.from, w.arrivals), ms(ofLiving), w.ofStruck.size(), ms(ofStruck), waiting, ms(longest), attempts, badAttempts, ms(keyFlying), storedTwice.get() - w.twiceBefore,
            redelivered.get() - w.againBefore, disorder.get() - w.disorderBefore, json(errors)));
    }

    static String brief(String error) {
        if (error == null) return "unanswered";
        String s = error.replaceAll("\\d+\\.\\d+\\.\\d+\\.\\d+:\\d+", "ADDR").replaceAll("\\d{2,} ?ms|cost \\[\\d+\\]ms", "T").replaceAll("[\\r\\n\"\\\\].*", "");
        return s.length() > 90 ? s.substring(0, 90) : s;
    }

    static String json(Map<String, Integer> m) {
        StringJoiner j = new StringJoiner(",", "{", "}");
        m.forEach((k, v) -> j.add("\"" + k + "\":" + v));
        return j.toString();
    }

    /** What was acknowledged must arrive; it may take a consumer half a minute and more to find its queue again. */
    static void end() throws Exception {
        long quiet = System.currentTimeMillis();
        int[] counts, before = {0, 0, 0};
        do {
            Thread.sleep(200);
            counts = counts();
            if (!Arrays.equals(counts, before)) { before = counts; quiet = System.currentTimeMillis(); }
        } while (counts[1] > 0 && System.currentTimeMillis() - quiet < 60_000);
        Thread.sleep(1000);
        counts = counts();
        System.out.println(String.format(Locale.ROOT, "{\"acknowledged\":%d,\"lost\":%d,\"stored_twice\":%d,\"redelivered\":%d,\"out_of_order\":%d,\"failed_yet_stored\":%d}",
            counts[0], counts[1], storedTwice.get(), redelivered.get(), disorder.get(), counts[2]));
        System.out.flush();
    }

    static int[] counts() {
        int[] all = new int[3];
        for (Fates of : fates) {
            int[] counts = of.counts();
            for (int i = 0; i < all.length; i++) all[i] += counts[i];
        }
        return all;
    }
}
