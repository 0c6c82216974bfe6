package bench;

import java.util.concurrent.locks.LockSupport;
import org.springframework.kafka.core.DefaultKafkaConsumerFactory;
import org.springframework.kafka.core.DefaultKafkaProducerFactory;
import org.springframework.kafka.core.KafkaTemplate;
import org.springframework.kafka.listener.BatchMessageListener;
import org.springframework.kafka.listener.ConcurrentMessageListenerContainer;
import org.springframework.kafka.listener.ContainerProperties;
import org.springframework.kafka.listener.ContainerProperties.AckMode;
import org.springframework.kafka.listener.MessageListener;
import org.springframework.kafka.transaction.KafkaTransactionManager;

/**
 * Spring Kafka's listener container, with a consumer per partition: it handles one record at a time in each.
 * A measured run begins when each consumer has its partition, so that the rebalances of their joining are no part of it.
 */
final class Spring {
    static final Main.Peer RECORD = (job, group, handler) -> plain(AckMode.RECORD, job, group, handler);
    static final Main.Peer BATCH = (job, group, handler) -> plain(AckMode.BATCH, job, group, handler);

    /** A transaction for each record. */
    static final Main.Peer RECORD_TRANSACTIONS = (job, group, handler) -> {
        var properties = new ContainerProperties(job.topic());
        var template = transactional(properties, job, group);
        properties.setMessageListener((MessageListener<byte[], byte[]>) record -> {
            handler.handle(record.value());
            template.send(job.output(), record.key(), record.value());
        });
        return start(properties, job, group);
    };

    /** A transaction for each poll. */
    static final Main.Peer BATCH_TRANSACTIONS = (job, group, handler) -> {
        var properties = new ContainerProperties(job.topic());
        var template = transactional(properties, job, group);
        properties.setMessageListener((BatchMessageListener<byte[], byte[]>) records -> {
            for (var record : records) {
                handler.handle(record.value());
                template.send(job.output(), record.key(), record.value());
            }
        });
        return start(properties, job, group);
    };

    private static AutoCloseable plain(AckMode mode, Job job, String group, Main.Handler handler) {
        var properties = new ContainerProperties(job.topic());
        properties.setAckMode(mode);
        properties.setMessageListener((MessageListener<byte[], byte[]>) record -> handler.handle(record.value()));
        return start(properties, job, group);
    }

    private static KafkaTemplate<byte[], byte[]> transactional(ContainerProperties properties, Job job, String group) {
        var producers = new DefaultKafkaProducerFactory<byte[], byte[]>(Main.producer(job));
        producers.setTransactionIdPrefix(group + "-");
        properties.setKafkaAwareTransactionManager(new KafkaTransactionManager<>(producers));
        return new KafkaTemplate<>(producers);
    }

    private static AutoCloseable start(ContainerProperties properties, Job job, String group) {
        var container = new ConcurrentMessageListenerContainer<>(
                new DefaultKafkaConsumerFactory<byte[], byte[]>(Main.config(job, group)), properties);
        container.setConcurrency(job.partitions());
        if (job.serve()) {
            container.start();
            return container::stop;
        }
        container.pause(); // paused, they join the group and get no record
        container.start();
        while (container.getContainers().stream().anyMatch(c -> c.getAssignedPartitions().isEmpty())) {
            LockSupport.parkNanos(10_000_000);
        }
        container.resume();
        return container::stop;
    }

    private Spring() {}
}
