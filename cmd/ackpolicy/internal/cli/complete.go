package cli

import (
	"github.com/IBM/sarama"
	"github.com/spf13/cobra"

	"github.com/ackpolicy/watermill-ackpolicy/cmd/ackpolicy/internal/kafka"
)

// Complete lists the values of a flag, for the completion of a shell.
func Complete(command *cobra.Command, flag string, values ...string) {
	register(command, flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
}

// CompleteTopics and CompleteGroups complete a flag by what there is in Kafka.
func (e *Env) CompleteTopics(command *cobra.Command, flag string) {
	e.ask(command, flag, kafka.TopicNames)
}

func (e *Env) CompleteGroups(command *cobra.Command, flag string) {
	e.ask(command, flag, kafka.GroupNames)
}

func (e *Env) ask(command *cobra.Command, flag string, names func(sarama.Client) ([]string, error)) {
	register(command, flag, func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		client, err := e.Kafka.Impatient()
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		defer func() { _ = client.Close() }()
		all, err := names(client)
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		return all, cobra.ShellCompDirectiveNoFileComp // the shell takes those that match
	})
}

func register(command *cobra.Command, flag string, values cobra.CompletionFunc) {
	if err := command.RegisterFlagCompletionFunc(flag, values); err != nil {
		panic(err) // a flag that is not defined
	}
}
