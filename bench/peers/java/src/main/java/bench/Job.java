package bench;

import java.util.List;

/** What the Go bench asks for. Durations are nanoseconds, as Go writes them. */
record Job(
        String consumer,
        List<String> brokers,
        String topic,
        String output, // the topic to publish to
        String group,
        long records,
        long work, // of waiting in the handler
        long spin, // of computing in the handler
        int concurrency, // handlers at once, per partition
        int partitions,
        long warm, // of an unmeasured run before
        String warmTopic, // what that reads; empty: topic
        long limit, // of the run; 0: none
        boolean serve, // until standard input ends, see Service
        boolean trace) { // report each record

    /** The unmeasured run before. */
    Job warmUp() {
        return new Job(consumer, brokers, warmTopic.isEmpty() ? topic : warmTopic, output + "-warm", group, records, work, spin,
                concurrency, partitions, warm, warmTopic, limit, serve, trace);
    }
}
