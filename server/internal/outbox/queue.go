package outbox

// Item is one entry of a frameQueue: a frame, or a run of small frames that were copied one behind the other.
type Item struct {
	B      []byte // what is left of it; its capacity is the memory that the item keeps
	seq    uint32 // position among everything that waits for the connection; wraps
	frames uint16 // length of the run; 0 for a single frame
	Kind   Kind
}

// ItemCost is the memory of an item without its bytes: its 32 B, and what the allocator adds to small frames.
const ItemCost = 40

// cost is the memory of the item, in bytes.
func (it *Item) cost() int { return ItemCost + cap(it.B) }

// Messages returns the number of messages that are lost with the item.
func (it *Item) Messages() uint64 {
	return uint64(MessagesOf(it.Kind) * max(int(it.frames), 1))
}

// MessagesOf returns the number of messages that are lost with one frame of a kind: 1 or 0.
func MessagesOf(kind Kind) int {
	if kind == Message || kind == History {
		return 1
	}
	return 0
}

const (
	// chunkItems is the largest number of items in a chunk: with the allocator's header it takes 2 KiB.
	chunkItems      = 63
	firstChunkItems = 8

	// smallFrame is the size up to which copies share blocks, of up to blockMax. The end of a block that the next
	// frame does not fit into is wasted: less than an eighth of it.
	smallFrame = 256
	blockMin   = 256
	blockMax   = 2 << 10
)

// frameQueue is a first-in, first-out list of items. It grows and shrinks by chunks, so that a long queue has no
// unused half and items never move: a pointer to an item is valid until the item is popped. The zero value is an
// empty queue. Owned by the loop.
type frameQueue struct {
	first, last *itemChunk
	spare       *itemChunk // the chunk that was emptied last, so that a queue of constant length allocates nothing
	head        int        // index of the front item in first
	len         int
	block       []byte // small copies are appended here; a run at the back of the queue ends at the block's end
}

type itemChunk struct {
	items      []Item
	prev, next *itemChunk
}

// front returns the oldest item, or nil.
func (q *frameQueue) front() *Item {
	if q.len == 0 {
		return nil
	}
	return &q.first.items[q.head]
}

// back returns the newest item, or nil.
func (q *frameQueue) back() *Item {
	if q.len == 0 {
		return nil
	}
	return &q.last.items[len(q.last.items)-1]
}

func (q *frameQueue) push(it Item) *Item {
	if q.last == nil || len(q.last.items) == cap(q.last.items) {
		q.grow()
	}
	q.last.items = append(q.last.items, it)
	q.len++
	return q.back()
}

func (q *frameQueue) grow() {
	c := q.spare
	if q.spare = nil; c == nil {
		n := firstChunkItems
		if q.last != nil {
			n = min(2*cap(q.last.items), chunkItems)
		}
		c = &itemChunk{items: make([]Item, 0, n)}
	}
	if q.last == nil {
		q.first = c
	} else {
		q.last.next, c.prev = c, q.last
	}
	q.last = c
}

// pop removes the front item.
func (q *frameQueue) pop() {
	c := q.first
	c.items[q.head] = Item{}
	q.head++
	q.len--
	if q.head < len(c.items) {
		return
	}
	q.head = 0
	if c.items = c.items[:0]; c.next != nil {
		q.first, c.next, q.spare = c.next, nil, c
		q.first.prev = nil
	}
}

// popBack removes the back item.
func (q *frameQueue) popBack() {
	c := q.last
	n := len(c.items) - 1
	c.items[n] = Item{}
	c.items = c.items[:n]
	switch q.len--; {
	case q.len == 0:
		c.items, q.head = c.items[:0], 0
	case n == 0:
		q.last, c.prev, q.spare = c.prev, nil, c
		q.last.next = nil
	}
}

// trim shortens the run at the back of the queue.
func (q *frameQueue) trim(bytes, frames int) {
	it := q.back()
	it.B, it.frames = it.B[:bytes:bytes], uint16(frames)
	q.block = nil // the run does not end where the block does
}

// reuse returns an empty queue with the room of one chunk of this one.
func (q *frameQueue) reuse() frameQueue {
	c := q.first
	if c == nil {
		return frameQueue{}
	}
	clear(c.items)
	c.items, c.prev, c.next = c.items[:0], nil, nil
	return frameQueue{first: c, last: c}
}

// join appends a copy of a small frame to the run at the back of the queue. It reports whether it could: there must
// be one of this kind, with nothing behind it, and room in the block.
func (q *frameQueue) join(b []byte, kind Kind, seq uint32) bool {
	it := q.back()
	if it == nil || it.frames == 0 || it.Kind != kind || it.seq+1 != seq || len(q.block)+len(b) > cap(q.block) {
		return false
	}
	begin := len(q.block) - len(it.B)
	q.block = append(q.block, b...)
	it.B = q.block[begin:len(q.block):len(q.block)]
	it.frames++
	return true
}

// copySmall copies a small frame into a block, for a new run.
func (q *frameQueue) copySmall(b []byte) []byte {
	begin := len(q.block)
	if begin+len(b) > cap(q.block) {
		q.block, begin = make([]byte, 0, min(max(2*cap(q.block), blockMin), blockMax)), 0
	}
	q.block = append(q.block, b...)
	return q.block[begin:len(q.block):len(q.block)]
}

// all yields the items from the front.
func (q *frameQueue) all(yield func(*Item) bool) {
	at := q.cursor()
	for it := at.item(); it != nil; it = at.item() {
		if !yield(it) {
			return
		}
		at.advance()
	}
}

// queueCursor walks through a queue that does not change meanwhile.
type queueCursor struct {
	chunk *itemChunk
	i     int
	left  int
}

func (q *frameQueue) cursor() queueCursor { return queueCursor{q.first, q.head, q.len} }

// item returns the item at the cursor, or nil at the end.
func (at *queueCursor) item() *Item {
	if at.left == 0 {
		return nil
	}
	return &at.chunk.items[at.i]
}

func (at *queueCursor) advance() {
	at.left--
	if at.i++; at.i == len(at.chunk.items) && at.left > 0 {
		at.chunk, at.i = at.chunk.next, 0
	}
}
