package cluster

import (
	"encoding/binary"
	"time"

	"carillon/server/topic"

	"github.com/nats-io/nats.go"
)

// askTimeout is how long answers of other nodes are waited for.
const askTimeout = time.Second

// gather puts a question to the nodes on a subject, and waits for the answers of those that are expected.
func (b *Broker) gather(subject string, question []byte, expected map[string]bool, done func([]topic.Answer, bool)) {
	var answers []topic.Answer
	b.exchange(subject, question, askTimeout, func(m *nats.Msg, err error) bool {
		if err != nil || isStatus(m, "503") {
			done(answers, len(expected) == 0)
			return false
		}
		if from, body, err := readAnswer(m.Data); err == nil {
			answers = append(answers, topic.Answer{Node: from, Body: body})
			delete(expected, from)
		}
		if len(expected) > 0 {
			return true
		}
		done(answers, true)
		return false
	})
}

// Ask implements [topic.Broker].
func (b *Broker) Ask(node, subject string, question []byte, done func([]topic.Answer, bool)) {
	if !b.ready.Load() {
		go done(nil, false)
		return
	}
	expected, to := b.others(false), b.names.questions()
	if node != "" {
		if _, err := parseID(node); err != nil || !expected[node] {
			go done(nil, false)
			return
		}
		expected, to = map[string]bool{node: true}, b.names.questionsTo(node)
	}
	if len(expected) == 0 {
		go done(nil, true)
		return
	}
	text := append(binary.AppendUvarint([]byte{wireVersion}, uint64(len(subject))), subject...)
	text = append(text, question...)
	b.answers.do(func() { b.gather(to, text, expected, done) }) // writing may have to wait
}

// asked answers another node.
func (b *Broker) asked(m *nats.Msg) {
	if len(m.Data) < 1 || m.Data[0] != wireVersion || m.Reply == "" {
		b.foreign("a question")
		return
	}
	n, size := binary.Uvarint(m.Data[1:])
	rest := m.Data[1+max(size, 0):]
	if size <= 0 || n > uint64(len(rest)) {
		b.foreign("a question")
		return
	}
	b.answers.do(func() {
		_ = b.nc.Publish(m.Reply, b.answer(b.node.Answer(string(rest[:n]), rest[n:]))) // the asker has a time-out
	})
}

func (b *Broker) answer(body []byte) []byte {
	return append(append([]byte{wireVersion}, b.id...), body...)
}

func readAnswer(data []byte) (from string, body []byte, err error) {
	if len(data) < 1+16 || data[0] != wireVersion {
		return "", nil, errWire
	}
	return string(data[1 : 1+16]), data[1+16:], nil
}

// barrier returns when the NATS servers of all other nodes know this node's subscriptions. Interest, and a
// message after it, take the same way from server to server, so a node that has got the message is connected to a
// server that knows. A node that does not answer in time is not waited for: what it publishes may be missed, as
// when it is cut off.
func (b *Broker) barrier() {
	expected := b.others(true)
	if len(expected) == 0 {
		return
	}
	ended := make(chan bool, 1)
	b.gather(b.names.sync(), []byte{wireVersion}, expected, func(_ []topic.Answer, all bool) { ended <- all })
	if !<-ended {
		b.stats.barriers.Add(1)
	}
}

// synced answers a barrier.
func (b *Broker) synced(m *nats.Msg) { _ = b.nc.Publish(m.Reply, b.answer(nil)) }
