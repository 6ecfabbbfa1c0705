package cli

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

const tailHelp = `Subscribes to topics and prints their messages as they arrive. On a terminal each
message is a line with its time, topic and offset; in a pipe it is the server's
JSON object, one per line. A pattern such as 'prices.>' matches many topics.

When the connection is lost, tail reconnects after a random delay of up to 250 ms
that doubles with each failure up to 30 s, or after the delay that the server
asks for ("; retry=" in a close reason, Retry-After in a refusal). It resumes
after the last message of each topic and reports a gap if the history does not
reach back that far. A pattern has no position to resume from, so messages may be
missing.

Exit status: 0 after --count messages, after Ctrl-C, or when the server closed
with 1000 (with --no-reconnect also 1001); 1 if the connection failed or a
subscription was refused; 2 on a usage error; 3 if the connection was lost with
--no-reconnect, or closed with a code that a retry would not change, such as
1008.`

const tailExamples = `  carillon tail prices.eu
  carillon tail 'prices.>' orders
  carillon tail prices.eu --last 100 --count 100 | jq .data
  carillon tail prices.eu --since 41 --epoch k3f9`

// maxLast is the bound of docs/protocol.md.
const maxLast = 10000

type tailOptions struct {
	handshake
	topics    []string
	last      int
	since     *position
	reconnect bool
	count     int    // 0: no end
	output    string // json, text, or empty for what suits the output
}

func tailCommand(std streams) *cobra.Command {
	o := tailOptions{handshake: handshake{header: http.Header{}, subprotocols: []string{jsonSubprotocol}}}
	var url, token string
	var since position
	var noReconnect bool
	cmd := &cobra.Command{
		Use: "tail TOPIC...", Short: "Print the messages of topics as they arrive", Long: tailHelp, Example: tailExamples,
		Args: cobra.MinimumNArgs(1),
		PreRunE: func(cmd *cobra.Command, args []string) (err error) {
			if cmd.Flags().Changed("since") {
				o.since = &since
			}
			if token != "" {
				o.header.Set("Authorization", "Bearer "+token)
			}
			o.topics, o.reconnect = args, !noReconnect
			if o.tls, err = o.trust.config(); err != nil {
				return err
			}
			if o.url, err = webSocketURL(url, nil); err != nil {
				return err
			}
			return o.check()
		},
		RunE: understood(func(*cobra.Command, []string) error {
			ctx, stop := interruptible()
			defer stop()
			return newTail(o, std).run(ctx)
		}),
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&url, "url", "ws://127.0.0.1:8080/ws", "`URL` of an endpoint with mode topics")
	headerFlag(cmd, o.header)
	o.trust.flags(cmd)
	// CARILLON_TOKEN is not for here: it opens the internal interface, and must not go to any other server.
	f.StringVar(&token, "token", "", "send 'Authorization: Bearer `TOKEN`'")
	f.IntVar(&o.last, "last", 0, "start with the newest `N` messages of the history, at most 10000")
	f.Uint64Var(&since.Offset, "since", 0, "start after the message with this `OFFSET`; for one topic only")
	f.StringVar(&since.Epoch, "epoch", "", "the `EPOCH` of that offset")
	f.IntVarP(&o.count, "count", "n", 0, "exit after `N` messages")
	f.BoolVar(&noReconnect, "no-reconnect", false, "exit when the connection is lost")
	f.BoolVar(&o.compression, "compression", false, "offer permessage-deflate")
	f.DurationVar(&o.timeout, "timeout", 10*time.Second, "limit each handshake to `TIME`")
	choiceFlag(cmd, &o.output, "output", "print `FORMAT`: text or json (default text on a terminal, json in a pipe)", "text", "json")
	noCompletion(cmd)
	noCompletion(cmd, "url", "token", "last", "since", "epoch", "count", "timeout")
	cmd.MarkFlagsRequiredTogether("since", "epoch")
	cmd.MarkFlagsMutuallyExclusive("since", "last")
	return cmd
}

// check finds what can be wrong with the command line.
func (o *tailOptions) check() error {
	for _, topic := range o.topics {
		if err := checkTopicArgument(topic, "url"); err != nil {
			return err
		}
	}
	pattern := slices.IndexFunc(o.topics, isPattern)
	switch {
	case o.last < 0 || o.last > maxLast:
		return fmt.Errorf("--last %d is out of range: expected 0 to %d", o.last, maxLast)
	case o.count < 0:
		return fmt.Errorf("--count %d is out of range: expected 1 or more", o.count)
	case o.timeout <= 0:
		return errors.New("--timeout must be greater than 0")
	case o.since != nil && len(o.topics) > 1:
		return errors.New("--since needs exactly one topic")
	case pattern >= 0 && (o.since != nil || o.last > 0):
		return fmt.Errorf("--since and --last need topics: %s is a pattern", o.topics[pattern])
	}
	return nil
}

func isPattern(topic string) bool {
	return slices.ContainsFunc(strings.Split(topic, "."), func(level string) bool { return level == "*" || level == ">" })
}

// rejectsForGood reports whether an HTTP answer would be the same the next time.
func rejectsForGood(err error) bool {
	r, ok := errors.AsType[*refused](err)
	return ok && slices.Contains([]int{http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden}, r.status)
}

// position is a place in a topic: after the message with this offset.
type position struct {
	Offset uint64 `json:"offset"`
	Epoch  string `json:"epoch"`
}
