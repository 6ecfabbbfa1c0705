package cluster

import (
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"strings"
	"time"

	"carillon/server/topic"
)

// wireVersion is the first byte of every message between nodes. A node that finds another one does not know
// what follows, and leaves the message out.
const wireVersion = 1

var errWire = errors.New("message of another version")

// names are the subjects of a cluster and the names of its streams.
type names struct{ cluster string }

func (n names) passing(topic string) string { return "carillon." + n.cluster + ".p." + topic }
func (n names) broadcast(path string) string {
	return "carillon." + n.cluster + ".b." + hex.EncodeToString([]byte(path))
}
func (n names) broadcasts() string { return "carillon." + n.cluster + ".b.*" }
func (n names) store(rule, epoch, topic string) string {
	return "carillon." + n.cluster + ".k." + rule + "." + epoch + "." + topic
}
func (n names) stored(rule, epoch, topic string) string {
	return "carillon." + n.cluster + ".r." + rule + "." + epoch + "." + topic
}
func (n names) heartbeats() string           { return "carillon." + n.cluster + ".n" }
func (n names) questions() string            { return "carillon." + n.cluster + ".q" }
func (n names) questionsTo(id string) string { return "carillon." + n.cluster + ".q." + id }
func (n names) sync() string                 { return "carillon." + n.cluster + ".s" }
func (n names) stream(rule string) string    { return "carillon_" + n.cluster + "_" + rule }

// epoch returns that of a stream, which is in the subject that it takes, or nothing if store has not made that.
func (n names) epoch(rule string, subjects []string) string {
	for _, subject := range subjects {
		epoch := strings.TrimSuffix(strings.TrimPrefix(subject, "carillon."+n.cluster+".k."+rule+"."), ".>")
		if isWord(epoch) && subject == n.store(rule, epoch, ">") {
			return epoch
		}
	}
	return ""
}

// kind returns the letter of a subject, and what comes behind it.
func (n names) kind(subject string) (kind byte, rest string) {
	rest = subject[min(len(subject), len("carillon.")+len(n.cluster)+1):]
	if len(rest) < 2 {
		return 0, ""
	}
	return rest[0], rest[2:]
}

// ruleID names a topic rule in subjects: by what it matches, so that rules may be put in another order.
func ruleID(match string) string {
	sum := sha256.Sum256([]byte(match))
	return strings.ToLower(base32.StdEncoding.EncodeToString(sum[:10]))
}

// envelope is what goes before the payload of a transient message or a broadcast.
type envelope struct {
	from        uint64 // the publisher
	count       uint64 // of its messages, without a hole
	incarnation uint64
	seq         uint64
	at          int64 // milliseconds since 1970
	format      byte  // of a broadcast, the opcode
}

const (
	countAt  = 10
	maxHead  = 10 + 8 + 3*binary.MaxVarintLen64
	keptHead = 2
)

// seal writes a message. Its count is set later, by setCount.
func (e *envelope) seal(payload []byte) []byte {
	b := make([]byte, 0, maxHead+len(payload))
	b = append(b, wireVersion, e.format)
	b = binary.BigEndian.AppendUint64(b, e.from)
	b = binary.BigEndian.AppendUint64(b, 0)
	b = binary.AppendUvarint(b, e.incarnation)
	b = binary.AppendUvarint(b, e.seq)
	b = binary.AppendVarint(b, e.at)
	return append(b, payload...)
}

func setCount(b []byte, count uint64) { binary.BigEndian.PutUint64(b[countAt:], count) }

// open reads a message. The payload is a part of b.
func open(b []byte) (e envelope, payload []byte, err error) {
	if len(b) < countAt+8 || b[0] != wireVersion {
		return e, nil, errWire
	}
	e.format = b[1]
	e.from = binary.BigEndian.Uint64(b[2:])
	e.count = binary.BigEndian.Uint64(b[countAt:])
	b = b[countAt+8:]
	for _, to := range []*uint64{&e.incarnation, &e.seq} {
		v, n := binary.Uvarint(b)
		if n <= 0 {
			return e, nil, errWire
		}
		*to, b = v, b[n:]
	}
	v, n := binary.Varint(b)
	if n <= 0 {
		return e, nil, errWire
	}
	e.at = v
	return e, b[n:], nil
}

// sealKept writes a message that is to be stored.
func sealKept(p *topic.Publication) []byte {
	b := make([]byte, 0, keptHead+len(p.Payload))
	return append(append(b, wireVersion, byte(p.Format)), p.Payload...)
}

// openKept reads one.
func openKept(name string, offset uint64, at string, b []byte) (topic.Message, error) {
	if len(b) < keptHead || b[0] != wireVersion || b[1] > byte(topic.FormatBinary) {
		return topic.Message{}, errWire
	}
	t, err := time.Parse(time.RFC3339Nano, at)
	if err != nil {
		return topic.Message{}, errWire
	}
	return topic.Message{Topic: name, Offset: offset, Time: t, Format: topic.Format(b[1]), Payload: b[keptHead:]}, nil
}
