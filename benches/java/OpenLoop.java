// Open-loop load over the unmodified Java client: every send has a due time, and its latency counts from
// there, so that a stall is charged to all the sends that it held up (no coordinated omission).
//
//   OpenLoop <name server> <topic> <body bytes> <sends a second> <warm-up s> <measured s>
//
// Prints one JSON line with latencies in milliseconds.

import java.util.Arrays;
import java.util.Random;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.locks.LockSupport;
import org.apache.rocketmq.client.producer.*;
import org.apache.rocketmq.common.message.Message;

public final class OpenLoop {
    public static void main(String[] a) throws Exception {
        int rate = Integer.parseInt(a[3]), warm = Integer.parseInt(a[4]), secs = Integer.parseInt(a[5]);
        byte[] body = new byte[Integer.parseInt(a[2])];
        new Random(7).nextBytes(body);
        DefaultMQProducer p = new DefaultMQProducer("open_loop");
        p.setNamesrvAddr(a[0]);
        p.setCompressMsgBodyOverHowmuch(Integer.MAX_VALUE);
        p.start();
        int total = rate * (warm + secs), skip = rate * warm;
        long[] latency = new long[total];
        AtomicInteger next = new AtomicInteger(), failed = new AtomicInteger();
        long start = System.nanoTime() + 200_000_000L;
        Thread[] threads = new Thread[64];
        for (int t = 0; t < threads.length; t++) {
            threads[t] = new Thread(() -> {
                for (int i; (i = next.getAndIncrement()) < total; ) {
                    long due = start + i * 1_000_000_000L / rate, wait;
                    while ((wait = due - System.nanoTime()) > 0) LockSupport.parkNanos(wait);
                    try {
                        if (p.send(new Message(a[1], body)).getSendStatus() != SendStatus.SEND_OK) failed.incrementAndGet();
                    } catch (Exception e) {
                        failed.incrementAndGet();
                    }
                    latency[i] = System.nanoTime() - due;
                }
            });
            threads[t].start();
        }
        for (Thread t : threads) t.join();
        long[] l = Arrays.copyOfRange(latency, skip, total);
        Arrays.sort(l);
        System.out.printf("{\"sends\":%d,\"failed\":%d,\"p50_ms\":%.3f,\"p99_ms\":%.3f,\"p999_ms\":%.3f,\"max_ms\":%.3f}%n",
            l.length, failed.get(), at(l, 0.5), at(l, 0.99), at(l, 0.999), l[l.length - 1] / 1e6);
        System.exit(0);
    }

    static double at(long[] sorted, double q) {
        return sorted[(int) Math.min(sorted.length - 1, sorted.length * q)] / 1e6;
    }
}
