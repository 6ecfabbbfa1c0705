package server

// The largest rates that the options take. Above a handshake in 10 us there is nothing to protect.
const (
	maxHandshakes = 100_000
	maxMessages   = 1_000_000
	maxBytes      = Size(100 << 30)
)

func (l *Limits) resolveRates(c *checker) {
	c.Rate("limits.max_connections_per_address", &l.MaxConnectionsPerAddress, 1<<30)
	c.Rate("limits.handshakes_per_second", &l.HandshakesPerSecond, maxHandshakes)
	c.Rate("limits.handshakes_per_second_per_address", &l.HandshakesPerSecondPerAddress, maxHandshakes)
	c.Rate("limits.messages_per_second", &l.MessagesPerSecond, maxMessages)
	c.Rate("limits.publishes_per_second", &l.PublishesPerSecond, maxMessages)
	c.Rate("limits.requests_per_second", &l.RequestsPerSecond, maxMessages)
	c.Size("limits.bytes_per_second", &l.BytesPerSecond, -1, true)
	c.Size("limits.decompressed_bytes_per_second", &l.DecompressedBytesPerSecond, 1<<20, true)
	c.byteRate("limits.bytes_per_second", l.BytesPerSecond)
	c.byteRate("limits.decompressed_bytes_per_second", l.DecompressedBytesPerSecond)
}

func (c *checker) byteRate(key string, n Size) {
	if n > maxBytes {
		c.Add(key, "%v is out of range: expected 1B to %v, or off", n, maxBytes)
	}
}
