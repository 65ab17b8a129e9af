import java.io.File;
import java.io.PrintWriter;
import java.lang.annotation.Annotation;
import java.lang.reflect.Field;
import java.lang.reflect.Method;
import java.net.URL;
import java.net.URLClassLoader;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;

/** Lists the keys of RocketMQ's configuration classes; run by config-keys.sh as OUTPUT VERSION=DIRECTORY... */
public class ConfigKeys {
    static final String[] CLASSES = {
        "org.apache.rocketmq.common.BrokerConfig",
        "org.apache.rocketmq.store.config.MessageStoreConfig",
        "org.apache.rocketmq.remoting.netty.NettyServerConfig",
        "org.apache.rocketmq.remoting.netty.NettyClientConfig",
        "org.apache.rocketmq.common.namesrv.NamesrvConfig",
        "org.apache.rocketmq.auth.config.AuthConfig",
    };
    static final Set<String> BY_MACHINE = Set.of("brokerIP1", "brokerIP2", "brokerName");

    static class Key {
        String type;
        List<List<String>> classes = List.of(new ArrayList<>(), new ArrayList<>());
        String[] defaults = {"-", "-"};
        boolean important;
    }

    public static void main(String[] args) throws Exception {
        Map<String, Key> keys = new TreeMap<>();
        for (int version = 0; version < args.length - 1; version++) {
            File[] jars = new File(args[version + 1].split("=", 2)[1]).listFiles();
            URL[] urls = new URL[jars.length];
            for (int i = 0; i < jars.length; i++) {
                urls[i] = jars[i].toURI().toURL();
            }
            ClassLoader loader = new URLClassLoader(urls, ClassLoader.getPlatformClassLoader());
            Thread.currentThread().setContextClassLoader(loader);
            for (String name : CLASSES) {
                try {
                    add(keys, version, loader.loadClass(name));
                } catch (ClassNotFoundException e) {
                    if (!name.endsWith("AuthConfig") || version != 0) {
                        throw e;
                    }
                }
            }
        }
        try (PrintWriter out = new PrintWriter(args[0], StandardCharsets.UTF_8)) {
            keys.forEach((name, key) -> out.println(String.join("\t", name, key.type,
                list(key.classes.get(0)), list(key.classes.get(1)),
                key.defaults[0], key.defaults[1], key.important ? "important" : "")));
        }
    }

    static String list(List<String> classes) {
        return classes.isEmpty() ? "-" : String.join(",", classes);
    }

    static void add(Map<String, Key> keys, int version, Class<?> type) throws Exception {
        Object defaults = type.getDeclaredConstructor().newInstance();
        for (Method method : type.getMethods()) {
            String name = method.getName();
            if (!name.startsWith("set") || name.length() < 4 || method.getParameterCount() != 1) {
                continue;
            }
            name = name.substring(3, 4).toLowerCase() + name.substring(4);
            Key key = keys.computeIfAbsent(name, n -> new Key());
            Class<?> parameter = method.getParameterTypes()[0];
            if (parameter.isEnum()) {
                key.type = Arrays.toString(parameter.getEnumConstants()).replaceAll("[\\[\\] ]", "").replace(',', '|');
            } else if (key.type == null) {
                key.type = parameter.getSimpleName();
            }
            if (!key.classes.get(version).contains(type.getSimpleName())) {
                key.classes.get(version).add(type.getSimpleName());
            }
            Field field = field(type, name);
            if (field != null) {
                field.setAccessible(true);
                Object value = field.get(defaults);
                key.defaults[version] = BY_MACHINE.contains(name) ? "(by machine)"
                    : value == null ? "" : value.toString().replaceAll("[\\t\\r\\n]", " ");
                for (Annotation mark : field.getAnnotations()) {
                    key.important |= mark.annotationType().getSimpleName().equals("ImportantField");
                }
            }
        }
    }

    /** The field behind a setter: of the same name, some with `is` before it or in other letters. */
    static Field field(Class<?> type, String name) {
        for (Class<?> t = type; t != null; t = t.getSuperclass()) {
            for (Field field : t.getDeclaredFields()) {
                if (field.getName().equalsIgnoreCase(name) || field.getName().equalsIgnoreCase("is" + name)) {
                    return field;
                }
            }
        }
        return null;
    }
}
