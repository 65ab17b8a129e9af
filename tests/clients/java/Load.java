// An application that produces or consumes through everything that happens to its broker, and says line
// by line what came of it. It knows nothing of moves and failures: its client has a stock client's settings.
//
//   java -cp <client jars> Load produce <name server> <topic>
//     "sent <n> <offset message id>" or "failed <n> <why>", for n from 0 on; the message's key is "load<n>"
//   java -cp <client jars> Load consume <name server> <topic> <group>
//     "got <n>"
//
// It ends when its standard input does.

import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.*;
import org.apache.rocketmq.client.producer.*;
import org.apache.rocketmq.common.consumer.ConsumeFromWhere;
import org.apache.rocketmq.common.message.*;

public final class Load {
    static final PrintStream OUT = System.out;
    static volatile boolean ended;

    public static void main(String[] args) throws Exception {
        Thread input = new Thread(() -> {
            try {
                while (System.in.read() >= 0) { }
            } catch (Exception e) {
                // The same as its end.
            }
            ended = true;
        });
        input.setDaemon(true);
        input.start();
        if (args[0].equals("produce")) produce(args[1], args[2]);
        else consume(args[1], args[2], args[3]);
        System.exit(0);
    }

    static synchronized void say(String line) {
        OUT.println(line);
        OUT.flush();
    }

    static void produce(String ns, String topic) throws Exception {
        DefaultMQProducer p = new DefaultMQProducer("load_producer");
        p.setNamesrvAddr(ns);
        p.start();
        for (int n = 0; !ended; n++) {
            byte[] body = ("body of " + n).getBytes(StandardCharsets.UTF_8);
            try {
                SendResult r = p.send(new Message(topic, "load", "load" + n, body));
                say("sent " + n + " " + r.getOffsetMsgId());
            } catch (Exception e) {
                say("failed " + n + " " + String.valueOf(e).split("\n")[0]);
                Thread.sleep(100);
            }
            Thread.sleep(10);
        }
        p.shutdown();
    }

    static void consume(String ns, String topic, String group) throws Exception {
        DefaultMQPushConsumer c = new DefaultMQPushConsumer(group);
        c.setNamesrvAddr(ns);
        c.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        c.subscribe(topic, "*");
        c.registerMessageListener((MessageListenerConcurrently) (list, context) -> {
            for (MessageExt m : list) say("got " + m.getKeys().substring(4));
            return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
        });
        c.start();
        while (!ended) Thread.sleep(50);
        c.shutdown();
    }
}
