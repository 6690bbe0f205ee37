// Sends each call with the HTTP client of Java that it names, and prints each answer.
// Reads lines of `name, client, address, body in base64` from standard input, with tabs between them;
// prints lines of `name, status or the error, body in base64`.
import java.io.BufferedReader;
import java.io.ByteArrayInputStream;
import java.io.InputStreamReader;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.util.Base64;
import java.util.LinkedHashMap;
import java.util.Map;
import org.apache.hc.client5.http.async.methods.SimpleHttpRequest;
import org.apache.hc.client5.http.async.methods.SimpleHttpResponse;
import org.apache.hc.client5.http.async.methods.SimpleRequestBuilder;
import org.apache.hc.client5.http.classic.methods.HttpPost;
import org.apache.hc.client5.http.impl.async.CloseableHttpAsyncClient;
import org.apache.hc.client5.http.impl.async.HttpAsyncClients;
import org.apache.hc.client5.http.impl.classic.CloseableHttpClient;
import org.apache.hc.client5.http.impl.classic.HttpClients;
import org.apache.hc.core5.http.ContentType;
import org.apache.hc.core5.http.io.entity.ByteArrayEntity;
import org.apache.hc.core5.http.io.entity.EntityUtils;
import org.apache.hc.core5.http.io.entity.InputStreamEntity;

public class Calls {
    record Answer(int status, byte[] body) {}

    interface Client {
        Answer post(String address, byte[] body) throws Exception;
    }

    static HttpRequest.Builder request(String address) {
        return HttpRequest.newBuilder(URI.create(address)).header("Content-Type", "application/json");
    }

    static Answer answer(HttpResponse<byte[]> response) {
        return new Answer(response.statusCode(), response.body());
    }

    static Client ofJava(HttpClient client) {
        return (address, body) -> {
            HttpRequest request = request(address).POST(HttpRequest.BodyPublishers.ofByteArray(body)).build();
            return answer(client.send(request, HttpResponse.BodyHandlers.ofByteArray()));
        };
    }

    static Client chunkedOfJava(HttpClient client) {
        return (address, body) -> {
            var stream = HttpRequest.BodyPublishers.ofInputStream(() -> new ByteArrayInputStream(body));
            HttpRequest request = request(address).POST(stream).build();
            return answer(client.sendAsync(request, HttpResponse.BodyHandlers.ofByteArray()).get());
        };
    }

    static Client ofApache(CloseableHttpClient client, boolean chunked) {
        return (address, body) -> {
            HttpPost request = new HttpPost(address);
            request.setEntity(chunked
                ? new InputStreamEntity(new ByteArrayInputStream(body), ContentType.APPLICATION_JSON)
                : new ByteArrayEntity(body, ContentType.APPLICATION_JSON));
            return client.execute(request, response ->
                new Answer(response.getCode(), EntityUtils.toByteArray(response.getEntity())));
        };
    }

    static Client asyncOfApache(CloseableHttpAsyncClient client) {
        client.start();
        return (address, body) -> {
            SimpleHttpRequest request =
                SimpleRequestBuilder.post(address).setBody(body, ContentType.APPLICATION_JSON).build();
            SimpleHttpResponse response = client.execute(request, null).get();
            return new Answer(response.getCode(), response.getBodyBytes());
        };
    }

    static Map<String, Client> clients() {
        Map<String, Client> clients = new LinkedHashMap<>();
        HttpClient offersHttp2 = HttpClient.newHttpClient();
        HttpClient http1 = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();
        CloseableHttpClient apache = HttpClients.createDefault();
        clients.put("java.net.http", ofJava(offersHttp2));
        clients.put("java.net.http, chunked", chunkedOfJava(offersHttp2));
        clients.put("java.net.http, HTTP/1.1", ofJava(http1));
        clients.put("Apache", ofApache(apache, false));
        clients.put("Apache, chunked", ofApache(apache, true));
        clients.put("Apache, asynchronous", asyncOfApache(HttpAsyncClients.createDefault()));
        clients.put("Apache, HTTP/2", asyncOfApache(HttpAsyncClients.createHttp2Default()));
        return clients;
    }

    public static void main(String[] arguments) throws Exception {
        Map<String, Client> clients = clients();
        var base64 = Base64.getEncoder();
        var lines = new BufferedReader(new InputStreamReader(System.in)).lines().toList();
        for (String line : lines) {
            String[] call = line.split("\t");
            String status;
            byte[] body = {};
            try {
                Answer answer = clients.get(call[1]).post(call[2], Base64.getDecoder().decode(call[3]));
                status = String.valueOf(answer.status());
                body = answer.body();
            } catch (Exception exception) {
                status = exception.toString().replaceAll("\\s+", " ");
            }
            System.out.println(call[0] + "\t" + status + "\t" + base64.encodeToString(body));
        }
        System.exit(0);
    }
}
