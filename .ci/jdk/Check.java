// Checks a WebSocket server with the clients of java.net.http, as they come with the JDK:
//
//     java Check.java localhost:8080
//
// /echo must send everything back. From the event stream /ws?topic=log&last=3 three messages must come. Prints a line for
// each check that went well; at the first that did not, ends with an exception and so with status 1.

import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.net.http.WebSocket;
import java.nio.ByteBuffer;
import java.util.List;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CompletionStage;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;

public class Check {
    static final int PATIENCE = 60; // seconds for anything that must happen; it says nothing about speed

    /** Hands out what comes, whole. */
    static class Events implements WebSocket.Listener {
        final BlockingQueue<String> queue = new LinkedBlockingQueue<>();
        private final StringBuilder text = new StringBuilder();
        private int binary;

        @Override
        public CompletionStage<?> onText(WebSocket ws, CharSequence part, boolean last) {
            text.append(part);
            if (last) {
                queue.add("text " + text);
                text.setLength(0);
            }
            ws.request(1);
            return null;
        }

        @Override
        public CompletionStage<?> onBinary(WebSocket ws, ByteBuffer part, boolean last) {
            binary += part.remaining();
            if (last) {
                queue.add("binary " + binary);
                binary = 0;
            }
            ws.request(1);
            return null;
        }

        @Override
        public CompletionStage<?> onPong(WebSocket ws, ByteBuffer payload) {
            queue.add("pong " + payload.remaining());
            ws.request(1);
            return null;
        }

        @Override
        public CompletionStage<?> onClose(WebSocket ws, int code, String reason) {
            queue.add("close " + code);
            return null;
        }

        @Override
        public void onError(WebSocket ws, Throwable error) {
            queue.add("error " + error);
        }

        void wants(String want) throws Exception {
            String got = queue.poll(PATIENCE, TimeUnit.SECONDS);
            if (!want.equals(got)) throw new Exception("got " + brief(got) + ", want " + brief(want));
        }
    }

    static String brief(String s) {
        return s == null || s.length() <= 80 ? s : s.substring(0, 80) + "... of " + s.length();
    }

    static void webSocket(HttpClient client, String host) throws Exception {
        Events events = new Events();
        WebSocket ws = client.newWebSocketBuilder().buildAsync(URI.create("ws://" + host + "/echo"), events).get(PATIENCE, TimeUnit.SECONDS);
        for (int size : new int[] {0, 1, 125, 126, 4 << 10, 64 << 10, 1 << 20}) {
            String text = "a".repeat(size);
            ws.sendText(text, true).get(PATIENCE, TimeUnit.SECONDS);
            events.wants("text " + text);
            ws.sendBinary(ByteBuffer.allocate(size), true).get(PATIENCE, TimeUnit.SECONDS);
            events.wants("binary " + size);
        }
        ws.sendText("Grüße, ", false).get(PATIENCE, TimeUnit.SECONDS);
        ws.sendPing(ByteBuffer.allocate(5)).get(PATIENCE, TimeUnit.SECONDS);
        ws.sendText("世界 🔔", true).get(PATIENCE, TimeUnit.SECONDS);
        events.wants("pong 5");
        events.wants("text Grüße, 世界 🔔");
        ws.sendClose(WebSocket.NORMAL_CLOSURE, "bye").get(PATIENCE, TimeUnit.SECONDS);
        events.wants("close 1000");
        System.out.println("ok: WebSocket");
    }

    static void eventStream(HttpClient client, String host) throws Exception {
        HttpRequest request = HttpRequest.newBuilder(URI.create("http://" + host + "/ws?topic=log&last=3")).header("Accept", "text/event-stream").build();
        var response = client.sendAsync(request, HttpResponse.BodyHandlers.ofLines()).get(PATIENCE, TimeUnit.SECONDS);
        if (response.statusCode() != 200) throw new Exception("answered " + response.statusCode());
        List<String> got = response.body().filter(line -> line.startsWith("data: message")).limit(3).toList();
        if (!got.equals(List.of("data: message 0", "data: message 1", "data: message 2"))) throw new Exception("got " + got);
        System.out.println("ok: event stream over " + client.version());
    }

    public static void main(String[] args) throws Exception {
        HttpClient client = HttpClient.newHttpClient(); // prefers HTTP/2, and says so with Upgrade: h2c
        webSocket(client, args[0]);
        eventStream(client, args[0]);
        eventStream(HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build(), args[0]);
        System.exit(0); // a stream that is not at its end keeps the client alive
    }
}
