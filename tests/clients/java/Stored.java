// What is stored, as the stock client and mqadmin read it.
//
//   java -cp <client jars> Stored
//
// Reads questions from its standard input, a line each with tabs between the words, and answers each by
// one line of JSON; what went wrong is {"error": why}. Compiles unchanged against the 4.9 and the 5.x
// client. It ends with its input.

import java.io.*;
import java.lang.reflect.*;
import java.net.InetSocketAddress;
import java.net.SocketAddress;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.util.*;
import java.util.concurrent.*;
import org.apache.rocketmq.client.QueryResult;
import org.apache.rocketmq.client.consumer.*;
import org.apache.rocketmq.client.consumer.listener.*;
import org.apache.rocketmq.common.consumer.ConsumeFromWhere;
import org.apache.rocketmq.common.message.*;
import org.apache.rocketmq.tools.admin.DefaultMQAdminExt;
import org.apache.rocketmq.tools.command.MQAdminStartup;

public final class Stored {
    static String ns, instance;
    static DefaultMQAdminExt admin;
    static final Map<String, DefaultMQPullConsumer> consumers = new HashMap<>();

    public static void main(String[] args) throws Exception {
        PrintStream answers = System.out;
        System.setOut(System.err);
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line; (line = in.readLine()) != null; ) {
            Object answer;
            try {
                answer = answer(line.split("\t", -1));
            } catch (Throwable e) {
                e.printStackTrace();
                answer = map("error", String.valueOf(e));
            }
            answers.write((json(answer) + "\n").getBytes(StandardCharsets.UTF_8));
            answers.flush();
        }
        System.exit(0);
    }

    static Object answer(String[] q) throws Exception {
        switch (q[0]) {
            case "open": return open(q[1]);
            case "topics": return topics(q[1]);
            case "groups": return groups(q[1]);
            case "queue": return queue(new MessageQueue(q[2], q[1], Integer.parseInt(q[3])));
            case "time": return consumer("TOOLS_CONSUMER").searchOffset(new MessageQueue(q[2], q[1], Integer.parseInt(q[3])), Long.parseLong(q[4]));
            case "offset": return consumer(q[1]).fetchConsumeOffset(new MessageQueue(q[3], q[2], Integer.parseInt(q[4])), true);
            case "id": return message(admin.viewMessage(q[1], q[2]));
            case "key": return positions(admin.queryMessage(q[1], q[2], 64, 0, Long.MAX_VALUE));
            case "unique": return positions(unique(q[1], q[2]));
            case "consume": return consume(Arrays.asList(q).subList(1, q.length));
            case "mqadmin": return mqadmin(Arrays.copyOfRange(q, 1, q.length));
            default: throw new IllegalArgumentException(q[0]);
        }
    }

    /** Leaves the cluster that it looked at before, and looks at that of another name server. */
    static Object open(String namesrv) throws Exception {
        for (DefaultMQPullConsumer c : consumers.values()) c.shutdown();
        consumers.clear();
        if (admin != null) admin.shutdown();
        ns = namesrv;
        instance = "stored" + System.nanoTime();
        admin = new DefaultMQAdminExt(10_000);
        admin.setNamesrvAddr(ns);
        admin.setInstanceName(instance);
        admin.start();
        List<Object> addresses = new ArrayList<>();
        for (var broker : admin.examineBrokerClusterInfo().getBrokerAddrTable().values()) addresses.addAll(new TreeMap<>(broker.getBrokerAddrs()).values());
        return addresses;
    }

    static DefaultMQPullConsumer consumer(String group) throws Exception {
        DefaultMQPullConsumer c = consumers.get(group);
        if (c == null) {
            c = new DefaultMQPullConsumer(group);
            c.setNamesrvAddr(ns);
            c.setInstanceName(instance);
            c.start();
            consumers.put(group, c);
        }
        return c;
    }

    static Object topics(String address) throws Exception {
        Map<String, Object> out = new TreeMap<>();
        for (var t : admin.getAllTopicConfig(address, 10_000).getTopicConfigTable().values())
            out.put(t.getTopicName(), map("perm", t.getPerm(), "readQueueNums", t.getReadQueueNums(), "writeQueueNums", t.getWriteQueueNums(),
                "order", t.isOrder(), "topicSysFlag", t.getTopicSysFlag(), "topicFilterType", t.getTopicFilterType().toString()));
        return out;
    }

    static Object groups(String address) throws Exception {
        Map<String, Object> out = new TreeMap<>();
        for (var g : admin.getAllSubscriptionGroup(address, 10_000).getSubscriptionGroupTable().values())
            out.put(g.getGroupName(), map("consumeEnable", g.isConsumeEnable(), "consumeFromMinEnable", g.isConsumeFromMinEnable(),
                "consumeBroadcastEnable", g.isConsumeBroadcastEnable(), "retryQueueNums", g.getRetryQueueNums(), "retryMaxTimes", g.getRetryMaxTimes(),
                "brokerId", g.getBrokerId(), "whichBrokerWhenConsumeSlowly", g.getWhichBrokerWhenConsumeSlowly(),
                "notifyConsumerIdsChangedEnable", g.isNotifyConsumerIdsChangedEnable()));
        return out;
    }

    static Object queue(MessageQueue q) throws Exception {
        DefaultMQPullConsumer c = consumer("TOOLS_CONSUMER");
        long min = c.minOffset(q), max = c.maxOffset(q), at = min;
        List<Object> messages = new ArrayList<>();
        while (at < max) {
            PullResult r = c.pull(q, "*", at, 32);
            if (r.getPullStatus() == PullStatus.FOUND) for (MessageExt m : r.getMsgFoundList()) messages.add(message(m));
            // Without a leader for a moment it is told to ask again.
            else if (r.getPullStatus() == PullStatus.NO_MATCHED_MSG && r.getNextBeginOffset() == at) Thread.sleep(100);
            else if (r.getNextBeginOffset() <= at) throw new IllegalStateException("pull at " + at + " of " + q + ": " + r);
            at = r.getNextBeginOffset();
        }
        return map("minOffset", min, "maxOffset", max, "messages", messages);
    }

    static Map<String, Object> message(MessageExt m) throws Exception {
        Map<String, String> properties = new TreeMap<>(m.getProperties());
        // The client adds these to what it pulls.
        properties.remove("MIN_OFFSET");
        properties.remove("MAX_OFFSET");
        byte[] body = m.getBody() == null ? new byte[0] : m.getBody();
        String id = m instanceof MessageClientExt ? ((MessageClientExt) m).getOffsetMsgId() : m.getMsgId();
        return map("topic", m.getTopic(), "queueId", m.getQueueId(), "queueOffset", m.getQueueOffset(), "phyOffset", m.getCommitLogOffset(),
            "storeSize", m.getStoreSize(), "msgId", id, "uniqKey", properties.get("UNIQ_KEY"), "keys", m.getKeys(), "tags", m.getTags(),
            "plainBodyLen", body.length, "plainBodySha256", sha(body), "bodyCRC", m.getBodyCRC(), "bornTimestamp", m.getBornTimestamp(),
            "storeTimestamp", m.getStoreTimestamp(), "bornHost", host(m.getBornHost()), "storeHost", host(m.getStoreHost()),
            "sysFlag", m.getSysFlag(), "flag", m.getFlag(), "reconsumeTimes", m.getReconsumeTimes(),
            "preparedTransactionOffset", m.getPreparedTransactionOffset(), "properties", properties);
    }

    static String host(SocketAddress a) {
        InetSocketAddress i = (InetSocketAddress) a;
        return i.getAddress().getHostAddress() + ":" + i.getPort();
    }

    static String sha(byte[] bytes) throws Exception {
        StringBuilder out = new StringBuilder();
        for (byte b : MessageDigest.getInstance("SHA-256").digest(bytes)) out.append(String.format("%02x", b));
        return out.toString();
    }

    static List<Object> positions(QueryResult r) {
        List<Object> out = new ArrayList<>();
        for (MessageExt m : r.getMessageList()) out.add(m.getCommitLogOffset());
        return out;
    }

    /** 5.x asks for the cluster, too. */
    static QueryResult unique(String topic, String key) throws Exception {
        for (Method m : admin.getClass().getMethods()) {
            if (!m.getName().equals("queryMessageByUniqKey")) continue;
            Object[] args = {topic, key, 32, 0L, Long.MAX_VALUE};
            if (m.getParameterCount() == 6) args = new Object[]{null, topic, key, 32, 0L, Long.MAX_VALUE};
            if (m.getParameterCount() == args.length) return (QueryResult) m.invoke(admin, args);
        }
        throw new AssertionError("this client has no queryMessageByUniqKey");
    }

    /** Groups go on from their offsets: triples of group, topic and how many messages there are for it. */
    static Object consume(List<String> wanted) throws Exception {
        // Others of the group would be given queues, too.
        for (DefaultMQPullConsumer c : consumers.values()) c.shutdown();
        consumers.clear();
        Map<String, Set<Long>> got = new TreeMap<>();
        List<DefaultMQPushConsumer> running = new ArrayList<>();
        for (int n = 0; n < wanted.size(); n += 3) {
            Set<Long> of = ConcurrentHashMap.newKeySet();
            got.put(wanted.get(n), of);
            DefaultMQPushConsumer c = new DefaultMQPushConsumer(wanted.get(n));
            c.setNamesrvAddr(ns);
            c.setInstanceName(instance + "c");
            c.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
            c.subscribe(wanted.get(n + 1), "*");
            c.registerMessageListener((MessageListenerConcurrently) (list, context) -> {
                for (MessageExt m : list) of.add(m.getCommitLogOffset());
                return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
            });
            c.start();
            running.add(c);
        }
        long end = System.currentTimeMillis() + 90_000;
        for (int n = 0; n < wanted.size(); n += 3)
            while (got.get(wanted.get(n)).size() < Integer.parseInt(wanted.get(n + 2)) && System.currentTimeMillis() < end) Thread.sleep(20);
        // Whatever comes beyond what was expected comes soon.
        Thread.sleep(300);
        for (DefaultMQPushConsumer c : running) c.shutdown();
        Map<String, Object> out = new TreeMap<>();
        got.forEach((group, of) -> out.put(group, new ArrayList<>(new TreeSet<>(of))));
        return out;
    }

    static Object mqadmin(String[] words) throws Exception {
        PrintStream before = System.out;
        ByteArrayOutputStream said = new ByteArrayOutputStream();
        System.setOut(new PrintStream(said, true, "UTF-8"));
        try {
            String[] all = Arrays.copyOf(words, words.length + 2);
            all[words.length] = "-n";
            all[words.length + 1] = ns;
            MQAdminStartup.main0(all, null);
        } finally {
            System.setOut(before);
        }
        return said.toString("UTF-8");
    }

    static Map<String, Object> map(Object... pairs) {
        Map<String, Object> out = new LinkedHashMap<>();
        for (int n = 0; n < pairs.length; n += 2) out.put((String) pairs[n], pairs[n + 1]);
        return out;
    }

    static String json(Object value) {
        if (value == null || value instanceof Number || value instanceof Boolean) return String.valueOf(value);
        StringBuilder out = new StringBuilder();
        if (value instanceof Map) {
            ((Map<?, ?>) value).forEach((k, v) -> out.append(out.length() == 0 ? "{" : ",").append(json(k)).append(':').append(json(v)));
            return out.length() == 0 ? "{}" : out.append('}').toString();
        }
        if (value instanceof List) {
            for (Object v : (List<?>) value) out.append(out.length() == 0 ? "[" : ",").append(json(v));
            return out.length() == 0 ? "[]" : out.append(']').toString();
        }
        out.append('"');
        for (char c : value.toString().toCharArray()) {
            if (c == '"' || c == '\\') out.append('\\').append(c);
            else if (c < ' ') out.append(String.format("\\u%04x", (int) c));
            else out.append(c);
        }
        return out.append('"').toString();
    }
}
