package bench;

import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.json.JsonMapper;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.HashMap;
import java.util.Map;
import java.util.UUID;

import static com.fasterxml.jackson.databind.DeserializationFeature.FAIL_ON_UNKNOWN_PROPERTIES;
import static com.fasterxml.jackson.databind.MapperFeature.ACCEPT_CASE_INSENSITIVE_PROPERTIES;

import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.clients.producer.ProducerConfig;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;

/** One run of one consumer: takes the job of the Go bench from the environment, prints its result as JSON. */
public final class Main {
    /** A consumer that reads the job's topic from its start; closing it stops it. */
    interface Peer {
        AutoCloseable start(Job job, String group, Handler handler) throws Exception;
    }

    /** Takes the value of a record. */
    interface Handler {
        void handle(byte[] value);
    }

    private static final Map<String, Peer> PEERS = Map.ofEntries(
            Map.entry("ppc key", Parallel.KEY),
            Map.entry("ppc unordered", Parallel.UNORDERED),
            Map.entry("ppc key transactions", Parallel.TRANSACTIONS),
            Map.entry("spring record", Spring.RECORD),
            Map.entry("spring batch", Spring.BATCH),
            Map.entry("spring record transactions", Spring.RECORD_TRANSACTIONS),
            Map.entry("spring batch transactions", Spring.BATCH_TRANSACTIONS),
            Map.entry("share java", Share.PEER));

    public static void main(String[] args) throws Exception {
        ObjectMapper json = JsonMapper.builder()
                .enable(ACCEPT_CASE_INSENSITIVE_PROPERTIES)
                .disable(FAIL_ON_UNKNOWN_PROPERTIES)
                .build();
        Job job = json.readValue(System.getenv("ACKPOLICY_BENCH_JOB"), Job.class);
        Peer peer = PEERS.get(job.consumer());
        if (peer == null) {
            throw new IllegalArgumentException("no consumer \"" + job.consumer() + "\"");
        }
        if (job.warm() > 0) {
            // The same work first, unmeasured and in a group of its own: the JVM compiles what is hot.
            Meter warm = new Meter(job, job.warm());
            try (AutoCloseable running = peer.start(job.warmUp(), job.group() + "-warm-" + UUID.randomUUID(), value -> warm.handle())) {
                warm.await();
            }
            System.gc();
        }
        if (job.serve()) {
            Service.run(job, peer);
        } else {
            Meter meter = new Meter(job, job.limit());
            peer.start(job, job.group(), value -> meter.handle());
            meter.await();
            System.out.println(json.writeValueAsString(Map.of(
                    "Rate", meter.rate(),
                    "CPUMicros", meter.cpuMicros(),
                    "PeakMiB", peakMiB())));
        }
        System.out.flush();
        Runtime.getRuntime().halt(0); // what comes after the measurement is no part of it
    }

    /** The plain consumer's configuration: Kafka's defaults, but for the offset to begin with. */
    static Map<String, Object> config(Job job, String group) {
        Map<String, Object> config = shared(job, group);
        config.put(ConsumerConfig.AUTO_OFFSET_RESET_CONFIG, "earliest");
        config.put(ConsumerConfig.ENABLE_AUTO_COMMIT_CONFIG, false);
        return config;
    }

    /** What a consumer and a share consumer both have. */
    static Map<String, Object> shared(Job job, String group) {
        Map<String, Object> config = new HashMap<>();
        config.put(ConsumerConfig.BOOTSTRAP_SERVERS_CONFIG, String.join(",", job.brokers()));
        config.put(ConsumerConfig.GROUP_ID_CONFIG, group);
        config.put(ConsumerConfig.KEY_DESERIALIZER_CLASS_CONFIG, ByteArrayDeserializer.class);
        config.put(ConsumerConfig.VALUE_DESERIALIZER_CLASS_CONFIG, ByteArrayDeserializer.class);
        return config;
    }

    /** The plain producer's configuration: Kafka's defaults. */
    static Map<String, Object> producer(Job job) {
        Map<String, Object> config = new HashMap<>();
        config.put(ProducerConfig.BOOTSTRAP_SERVERS_CONFIG, String.join(",", job.brokers()));
        config.put(ProducerConfig.KEY_SERIALIZER_CLASS_CONFIG, ByteArraySerializer.class);
        config.put(ProducerConfig.VALUE_SERIALIZER_CLASS_CONFIG, ByteArraySerializer.class);
        return config;
    }

    /** The process's largest resident size; 0 where there is no /proc. */
    private static double peakMiB() throws Exception {
        Path status = Path.of("/proc/self/status");
        if (!Files.exists(status)) {
            return 0;
        }
        for (String line : Files.readAllLines(status)) {
            if (line.startsWith("VmHWM:")) {
                return Double.parseDouble(line.replaceAll("[^0-9]", "")) / 1024;
            }
        }
        return 0;
    }

    private Main() {}
}
