package server

import (
	"context"
	"os/exec"
	"strings"
	"testing"

	"carillon/internal/testenv"
)

// pythonWindows has Python's websockets, whose zlib inflates with just the window that was negotiated, echo a text that
// repeats itself from everywhere within 100 KB.
const pythonWindows = `
import asyncio, random, sys, websockets
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory as Deflate

rand = random.Random(1)
text = ""
while len(text) < 200_000:
    back = rand.randrange(100_000)
    text += text[-back - 60:][:60] if back < len(text) and rand.random() < 0.5 else "%x " % rand.getrandbits(64)

async def main(url):
    for bits in range(8, 16):
        for client_bits in (None, True, 9, 15):
            offer = Deflate(server_max_window_bits=bits, client_max_window_bits=client_bits)
            async with websockets.connect(url, compression=None, extensions=[offer], max_size=None) as ws:
                assert ws.extensions and ws.extensions[0].remote_max_window_bits == bits, (bits, ws.extensions)
                for size in (16, 300, 1024, 8192, 32768, 131072, len(text)):
                    await ws.send(text[:size])
                    assert await ws.recv() == text[:size], (bits, size)

asyncio.run(main(sys.argv[1]))
`

// Python's websockets asks for windows of all sizes.
func TestPythonWindows(t *testing.T) {
	python := "/usr/bin/python3" // which has Debian's packages
	if err := exec.Command(python, "-c", "import websockets").Run(); err != nil {
		testenv.Missing(t, "Python's websockets, Debian's package python3-websockets", err)
	}
	s := start(t, Options{Endpoints: compressing()})
	ctx, cancel := context.WithTimeout(context.Background(), 6*patience)
	defer cancel()
	url := strings.Replace(s.URL("/echo"), "http", "ws", 1)
	if out, err := exec.CommandContext(ctx, python, "-c", pythonWindows, url).CombinedOutput(); err != nil {
		t.Errorf("%v:\n%s", err, out)
	}
}
