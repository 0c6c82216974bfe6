package bench;

import java.util.List;

/** What the Go bench asks for. Durations are nanoseconds, as Go writes them. */
record Job(
        String consumer,
        List<String> brokers,
        String topic,
        String group,
        long records,
        long work, // of waiting in the handler
        long spin, // of computing in the handler
        int concurrency, // handlers at once, per partition
        int partitions,
        long warm, // of an unmeasured run before
        long limit) {} // of the run; 0: none
