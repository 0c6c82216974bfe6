package bench;

import io.confluent.parallelconsumer.ParallelConsumerOptions;
import io.confluent.parallelconsumer.ParallelConsumerOptions.CommitMode;
import io.confluent.parallelconsumer.ParallelConsumerOptions.ParallelConsumerOptionsBuilder;
import io.confluent.parallelconsumer.ParallelConsumerOptions.ProcessingOrder;
import io.confluent.parallelconsumer.ParallelStreamProcessor;
import java.time.Duration;
import java.util.List;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerConfig;
import org.apache.kafka.clients.producer.ProducerRecord;

/** Confluent's Parallel Consumer as it comes, with the concurrency of the others. */
final class Parallel {
    static final Main.Peer KEY = (job, group, handler) -> start(ProcessingOrder.KEY, job, group, handler);
    static final Main.Peer UNORDERED = (job, group, handler) -> start(ProcessingOrder.UNORDERED, job, group, handler);

    /** By key, with a transaction as often as ours: its own default is every 5 s. */
    static final Main.Peer TRANSACTIONS = (job, group, handler) -> {
        var producer = Main.producer(job);
        producer.put(ProducerConfig.TRANSACTIONAL_ID_CONFIG, group);
        var processor = processor(job, options(ProcessingOrder.KEY, job, group)
                .producer(new KafkaProducer<>(producer))
                .commitMode(CommitMode.PERIODIC_TRANSACTIONAL_PRODUCER)
                .commitInterval(Duration.ofMillis(100)));
        processor.pollAndProduce(record -> {
            handler.handle(record.value());
            return new ProducerRecord<>(job.output(), record.key(), record.value());
        });
        return processor::closeDontDrainFirst;
    };

    private static AutoCloseable start(ProcessingOrder order, Job job, String group, Main.Handler handler) {
        var processor = processor(job, options(order, job, group));
        processor.poll(record -> handler.handle(record.value()));
        return processor::closeDontDrainFirst;
    }

    private static ParallelConsumerOptionsBuilder<byte[], byte[]> options(ProcessingOrder order, Job job, String group) {
        return ParallelConsumerOptions.<byte[], byte[]>builder()
                .consumer(new KafkaConsumer<>(Main.config(job, group)))
                .ordering(order)
                .maxConcurrency(job.concurrency() * job.partitions()); // its bound is over all partitions
    }

    private static ParallelStreamProcessor<byte[], byte[]> processor(
            Job job, ParallelConsumerOptionsBuilder<byte[], byte[]> options) {
        var processor = ParallelStreamProcessor.createEosStreamProcessor(options.build());
        processor.subscribe(List.of(job.topic()));
        return processor;
    }

    private Parallel() {}
}
