import java.io.ByteArrayInputStream;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.Properties;
import java.util.Random;
import java.util.TreeMap;

/**
 * Writes src/config/testdata/properties.json (java scripts/PropertiesGolden.java > ...): small
 * properties files made of the characters that matter to the format, each with what Java reads.
 */
public class PropertiesGolden {
    static final String[] PIECES = {
        "a", "b", "c", "=", ":", " ", "\t", "\f", "#", "!", "\\", "\\", "\n", "\n", "\r", "\r\n",
        "\\n", "\\u0041", "\\=", "x"
    };

    public static void main(String[] args) throws Exception {
        Random random = new Random(7);
        List<String> cases = new ArrayList<>();
        while (cases.size() < 400) {
            StringBuilder file = new StringBuilder();
            for (int n = 1 + random.nextInt(24); n > 0; n--) {
                file.append(PIECES[random.nextInt(PIECES.length)]);
            }
            // A lone backslash at the very end makes an empty key in Java, and nothing in rmq.
            if (file.toString().strip().endsWith("\\")) {
                continue;
            }
            Properties properties = new Properties();
            try {
                properties.load(new ByteArrayInputStream(file.toString().getBytes(StandardCharsets.ISO_8859_1)));
            } catch (IllegalArgumentException malformedEscape) {
                continue;
            }
            List<String> pairs = new ArrayList<>();
            new TreeMap<>(properties).forEach((k, v) -> pairs.add("[" + json((String) k) + "," + json((String) v) + "]"));
            cases.add("[" + json(file.toString()) + ",[" + String.join(",", pairs) + "]]");
        }
        System.out.println("[\n" + String.join(",\n", cases) + "\n]");
    }

    static String json(String text) {
        StringBuilder out = new StringBuilder("\"");
        for (char c : text.toCharArray()) {
            if (c == '"' || c == '\\') {
                out.append('\\').append(c);
            } else if (c < ' ' || c > '~') {
                out.append(String.format("\\u%04x", (int) c));
            } else {
                out.append(c);
            }
        }
        return out.append('"').toString();
    }
}
