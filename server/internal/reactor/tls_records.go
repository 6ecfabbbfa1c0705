package reactor

import (
	"errors"
	"time"

	"carillon/server/internal/certs"
	"carillon/server/internal/limit"
)

// A record that carries no data of the application (a KeyUpdate, or an empty one) costs a loop time for nothing, and
// crypto/tls takes 16 of them for each byte of data. No client has a reason to send many
// (RFC 8446, section 5.5: a key is good for 2^24 records), so there is a limit that no option moves.
const (
	EmptyRecords      = 100 // that may come at once
	emptyRecordsEvery = 100 * time.Millisecond
)

var emptyRecordPace = limit.NewTokenBucket(int64(time.Second/emptyRecordsEvery), EmptyRecords*emptyRecordsEvery)

var errEmptyRecords = errors.New("too many TLS records without data")

// records follows the records (RFC 8446, section 5.1) in what comes, so that crypto/tls gets them one by one and it
// is known how many it has taken.
type records struct {
	head  [certs.RecordHead]byte
	have  int8   // bytes of head that are there, while the whole of it is not
	left  uint16 // bytes of the record that are still to come, once its head is there
	Count uint32 // records that have come to their end
}

func recordSize(head []byte) int { return int(head[3])<<8 | int(head[4]) }

// limit is how many bytes of b belong to the record that has begun, or that begins there.
func (r *records) limit(b []byte) int {
	if r.left > 0 {
		return min(int(r.left), len(b))
	}
	missing := certs.RecordHead - int(r.have)
	if len(b) < missing {
		return len(b)
	}
	head := r.head
	copy(head[r.have:], b)
	return min(missing+recordSize(head[:]), len(b))
}

// isWhole reports whether the record that has begun, or that begins in b, ends there.
func (r *records) isWhole(b []byte) bool {
	if r.left > 0 {
		return len(b) >= int(r.left)
	}
	missing := certs.RecordHead - int(r.have)
	if len(b) < missing {
		return false
	}
	head := r.head
	copy(head[r.have:], b)
	size := recordSize(head[:])
	return len(b) >= missing+size || size > certs.MaxSealed // crypto/tls does not wait for that
}

// advance notes that b was taken.
func (r *records) advance(b []byte) {
	for len(b) > 0 {
		if r.left > 0 {
			n := min(int(r.left), len(b))
			r.left -= uint16(n)
			b = b[n:]
		} else {
			n := copy(r.head[r.have:], b)
			r.have += int8(n)
			if b = b[n:]; r.have < certs.RecordHead {
				return
			}
			r.have, r.left = 0, uint16(recordSize(r.head[:]))
		}
		if r.left == 0 {
			r.Count++
		}
	}
}

// chargeEmpty is called after each read by the loop, which gets data of one record at most, and is an error when too
// many of those that crypto/tls took for it had none.
func (s *Session) chargeEmpty(gotData bool, now uint32) error {
	empty := int(s.Records.Count - s.charged)
	s.charged = s.Records.Count
	if gotData {
		empty--
	}
	if empty <= 0 {
		return nil
	}
	s.emptyDebt, s.emptyAt = limit.Decay(s.emptyDebt, now-s.emptyAt), now
	if !emptyRecordPace.Allow(&s.emptyDebt, empty) {
		return errEmptyRecords
	}
	return nil
}
