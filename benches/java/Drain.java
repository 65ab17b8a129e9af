// Reads a topic from its first message on with the unmodified Java push consumer in its default settings.
//
//   Drain <name server> <topic> <messages>
//
// Prints a line with the first message, and a JSON line with the rate once there were so many.

import java.util.concurrent.atomic.AtomicLong;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.common.consumer.ConsumeFromWhere;

public final class Drain {
    public static void main(String[] a) throws Exception {
        long wanted = Long.parseLong(a[2]);
        AtomicLong read = new AtomicLong(), begun = new AtomicLong();
        DefaultMQPushConsumer consumer = new DefaultMQPushConsumer("drain_" + System.nanoTime());
        consumer.setNamesrvAddr(a[0]);
        consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        consumer.subscribe(a[1], "*");
        consumer.registerMessageListener((MessageListenerConcurrently) (messages, context) -> {
            if (begun.compareAndSet(0, System.nanoTime())) System.out.println("begun");
            long before = read.getAndAdd(messages.size());
            if (before < wanted && before + messages.size() >= wanted) {
                double seconds = (System.nanoTime() - begun.get()) / 1e9;
                System.out.printf("{\"per_second\":%.0f}%n", wanted / seconds);
            }
            return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
        });
        consumer.start();
        Thread.currentThread().join();
    }
}
