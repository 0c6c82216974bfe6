package bench;

import io.confluent.parallelconsumer.ParallelConsumerOptions;
import io.confluent.parallelconsumer.ParallelConsumerOptions.ProcessingOrder;
import io.confluent.parallelconsumer.ParallelStreamProcessor;
import java.util.List;
import org.apache.kafka.clients.consumer.KafkaConsumer;

/** Confluent's Parallel Consumer as it comes, with the concurrency of the others. */
final class Parallel {
    static final Main.Peer KEY = (job, group, handler) -> start(ProcessingOrder.KEY, job, group, handler);
    static final Main.Peer UNORDERED = (job, group, handler) -> start(ProcessingOrder.UNORDERED, job, group, handler);

    private static AutoCloseable start(ProcessingOrder order, Job job, String group, Runnable handler) {
        var options = ParallelConsumerOptions.<byte[], byte[]>builder()
                .consumer(new KafkaConsumer<>(Main.config(job, group)))
                .ordering(order)
                .maxConcurrency(job.concurrency() * job.partitions()) // its bound is over all partitions
                .build();
        var processor = ParallelStreamProcessor.createEosStreamProcessor(options);
        processor.subscribe(List.of(job.topic()));
        processor.poll(record -> handler.run());
        return processor::closeDontDrainFirst;
    }

    private Parallel() {}
}
