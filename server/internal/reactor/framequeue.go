package reactor

// item is one entry of a FrameQueue: a frame, or a run of small frames that were copied one behind the other.
type item struct {
	B      []byte // the bytes that are left; its capacity is the memory that the item keeps
	Seq    uint32 // position among everything that waits for the connection; wraps
	frames uint16 // length of the run; 0 for a single frame
	Kind   ItemKind
}

// ItemCost is the memory of an item without its bytes: its 32 B, and what the allocator adds to small frames.
const ItemCost = 40

// Cost is the memory of the item, in bytes.
func (it *item) Cost() int { return ItemCost + cap(it.B) }

// Messages returns the number of messages that are lost with the item.
func (it *item) Messages() uint64 {
	return uint64(messagesOf(it.Kind) * max(int(it.frames), 1))
}

// messagesOf returns the number of messages that are lost with one frame of a kind: 1 or 0.
func messagesOf(kind ItemKind) int {
	if kind == ItemMessage || kind == ItemHistory {
		return 1
	}
	return 0
}

const (
	// chunkItems is the largest number of items in a chunk: with the allocator's header it takes 2 KiB.
	chunkItems      = 63
	firstChunkItems = 8

	// SmallFrame is the size up to which copies share blocks, of up to blockMax. The end of a block that the next
	// frame does not fit into is wasted: less than an eighth of it.
	SmallFrame = 256
	blockMin   = 256
	blockMax   = 2 << 10
)

// FrameQueue is a first-in, first-out list of items. It grows and shrinks by chunks, so that a long queue has no
// unused half and items never move: a pointer to an item is valid until the item is popped. The zero value is an
// empty queue. Owned by the loop.
type FrameQueue struct {
	First, last *itemChunk
	spare       *itemChunk // the chunk that was emptied last, so that a queue of constant length allocates nothing
	Head        int        // index of the front item in first
	Len         int
	block       []byte // small copies are appended here; a run at the back of the queue ends at the block's end
}

type itemChunk struct {
	Items      []item
	prev, next *itemChunk
}

// front returns the oldest item, or nil.
func (q *FrameQueue) front() *item {
	if q.Len == 0 {
		return nil
	}
	return &q.First.Items[q.Head]
}

// Back returns the newest item, or nil.
func (q *FrameQueue) Back() *item {
	if q.Len == 0 {
		return nil
	}
	return &q.last.Items[len(q.last.Items)-1]
}

func (q *FrameQueue) push(it item) *item {
	if q.last == nil || len(q.last.Items) == cap(q.last.Items) {
		q.grow()
	}
	q.last.Items = append(q.last.Items, it)
	q.Len++
	return q.Back()
}

func (q *FrameQueue) grow() {
	c := q.spare
	if q.spare = nil; c == nil {
		n := firstChunkItems
		if q.last != nil {
			n = min(2*cap(q.last.Items), chunkItems)
		}
		c = &itemChunk{Items: make([]item, 0, n)}
	}
	if q.last == nil {
		q.First = c
	} else {
		q.last.next, c.prev = c, q.last
	}
	q.last = c
}

// pop removes the front item.
func (q *FrameQueue) pop() {
	c := q.First
	c.Items[q.Head] = item{}
	q.Head++
	q.Len--
	if q.Head < len(c.Items) {
		return
	}
	q.Head = 0
	if c.Items = c.Items[:0]; c.next != nil {
		q.First, c.next, q.spare = c.next, nil, c
		q.First.prev = nil
	}
}

// popBack removes the back item.
func (q *FrameQueue) popBack() {
	c := q.last
	n := len(c.Items) - 1
	c.Items[n] = item{}
	c.Items = c.Items[:n]
	switch q.Len--; {
	case q.Len == 0:
		c.Items, q.Head = c.Items[:0], 0
	case n == 0:
		q.last, c.prev, q.spare = c.prev, nil, c
		q.last.next = nil
	}
}

// trim shortens the run at the back of the queue.
func (q *FrameQueue) trim(bytes, frames int) {
	it := q.Back()
	it.B, it.frames = it.B[:bytes:bytes], uint16(frames)
	q.block = nil // the run does not end where the block does
}

// reuse returns an empty queue with the room of one chunk of this one.
func (q *FrameQueue) reuse() FrameQueue {
	c := q.First
	if c == nil {
		return FrameQueue{}
	}
	clear(c.Items)
	c.Items, c.prev, c.next = c.Items[:0], nil, nil
	return FrameQueue{First: c, last: c}
}

// join appends a copy of a small frame to the run at the back of the queue. It reports whether it could: there must
// be one of this kind, with nothing behind it, and room in the block.
func (q *FrameQueue) join(b []byte, kind ItemKind, seq uint32) bool {
	it := q.Back()
	if it == nil || it.frames == 0 || it.Kind != kind || it.Seq+1 != seq || len(q.block)+len(b) > cap(q.block) {
		return false
	}
	begin := len(q.block) - len(it.B)
	q.block = append(q.block, b...)
	it.B = q.block[begin:len(q.block):len(q.block)]
	it.frames++
	return true
}

// copySmall copies a small frame into a block, for a new run.
func (q *FrameQueue) copySmall(b []byte) []byte {
	begin := len(q.block)
	if begin+len(b) > cap(q.block) {
		q.block, begin = make([]byte, 0, min(max(2*cap(q.block), blockMin), blockMax)), 0
	}
	q.block = append(q.block, b...)
	return q.block[begin:len(q.block):len(q.block)]
}

// all yields the items from the front.
func (q *FrameQueue) all(yield func(*item) bool) {
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

func (q *FrameQueue) cursor() queueCursor { return queueCursor{q.First, q.Head, q.Len} }

// item returns the item at the cursor, or nil at the end.
func (at *queueCursor) item() *item {
	if at.left == 0 {
		return nil
	}
	return &at.chunk.Items[at.i]
}

func (at *queueCursor) advance() {
	at.left--
	if at.i++; at.i == len(at.chunk.Items) && at.left > 0 {
		at.chunk, at.i = at.chunk.next, 0
	}
}
