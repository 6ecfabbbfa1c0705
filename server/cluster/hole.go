package cluster

import (
	"cmp"
	"slices"
	"sort"
	"time"

	"carillon/server/topic"
)

// A message that a disk has changed is there, and JetStream cannot read it: it counts it, and goes on with the next
// one, as if there were none. What comes then looks whole. The number of messages behind one, which comes with each,
// tells.

// whole looks whether a replica has more of a topic than it could send. What it cannot read the stream's leader may be
// able to; what neither can read is a hole, and what is before that is left out.
func (b *Broker) whole(at place, all fetched, deadline time.Time) (fetched, error) {
	list := all.messages
	if len(list) == 0 {
		return all, nil
	}
	missing, err := b.missing(at, list, sureOfGap, deadline)
	if err != nil || missing == 0 {
		return all, err
	}
	first, last := list[0].Offset, lastOf(list)
	parts, err := b.fetchParts(at, first, last, deadline)
	if err != nil {
		return fetched{}, err
	}
	for _, m := range parts.messages {
		if at, found := slices.BinarySearchFunc(list, m.Offset, func(a topic.Message, offset uint64) int { return cmp.Compare(a.Offset, offset) }); !found {
			list = slices.Insert(list, at, m)
			missing--
		}
	}
	if all.messages = list; missing == 0 {
		return all, nil
	}
	begin := sort.Search(len(list)-1, func(i int) bool {
		var n int
		if err == nil {
			n, err = b.missing(at, list[i:], sureOfNone, deadline) // there is a gap, so this only says where
		}
		return n == 0
	})
	if err != nil {
		return fetched{}, err
	}
	b.unreadable(at.topic)
	all.messages, all.lost = list[begin:], max(all.lost, list[begin].Offset-1)
	return all, nil
}

// How often the answers have to say the same. Answers of different replicas, one of which lags, can look like a gap;
// those of one replica cannot. A real gap is overlooked only if the lag of a replica hides exactly as many messages,
// twice.
const (
	sureOfNone = 2
	sureOfGap  = 8
)

// bounds is what is known about a number that does not change: it is from low to high, as so many observations have
// said that came closest. A contradiction starts it anew.
type bounds struct {
	low, high         int
	saidLow, saidHigh int
}

func (k *bounds) observe(low, high int) {
	if k.saidLow == 0 || high < k.low || low > k.high {
		*k = bounds{low, high, 1, 1}
		return
	}
	switch {
	case low > k.low:
		k.low, k.saidLow = low, 1
	case low == k.low:
		k.saidLow++
	}
	switch {
	case high < k.high:
		k.high, k.saidHigh = high, 1
	case high == k.high:
		k.saidHigh++
	}
}

// missing is how many messages a replica has between the first and the last of a list that are not in it; 0 where
// messages come so fast that it cannot be told.
//
// Three questions are asked at once: how many are behind the last one, how many behind the first, and how many behind
// the last one again. What comes in between is counted in some of the answers only, so that they say at least how many
// are missing, and at most; in rounds in which nothing comes before or after the second answer, one of the two is
// exact. It takes sure rounds that agree to tell a gap.
func (b *Broker) missing(at place, list []topic.Message, sure int, deadline time.Time) (int, error) {
	first, last := list[0].Offset, lastOf(list)
	end := time.Now().Add(time.Until(deadline) / 4)
	var known bounds
	for time.Now().Before(end) {
		var answers [3]func() (fetched, bool, error)
		for i, from := range []uint64{last, first, last} {
			answers[i] = b.askBatch(at, from, 0, 1, deadline)
		}
		var behind [3]int
		there := true
		for i, from := range []uint64{last, first, last} {
			have, _, err := answers[i]()
			if err != nil {
				return 0, err
			}
			there = there && have.last() == from
			behind[i] = int(have.left)
		}
		between := behind[1] - (len(list) - 1)
		// One of them may just have been removed, and a replica that lags may say that there are fewer than the list
		// has.
		if low, high := between-behind[2], between-behind[0]; there && low <= high && high >= 0 {
			known.observe(low, high)
		}
		switch {
		case known.saidHigh >= sureOfNone && known.high == 0:
			return 0, nil
		case known.saidLow >= sure && known.low > 0:
			return known.low, nil
		}
	}
	if known.low > 0 && known.saidLow > 1 { // in doubt a gap, which costs a client no message
		return known.low, nil
	}
	return 0, nil
}

// unreadable counts and logs that messages of a topic cannot be read.
func (b *Broker) unreadable(topic string) {
	if n := b.stats.holes.Add(1); n == 1 || n%100 == 0 {
		b.log.Error("JetStream cannot read stored messages of a topic, perhaps because of a disk error; clients that miss them are told of a gap",
			"topic", topic, "holes", n)
	}
}
