package server_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	channelzpb "google.golang.org/grpc/channelz/grpc_channelz_v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/prototext"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

func withChannelz(c *server.Config, _ *atlas.Config) { c.Debug = true }

// adminConn is of a client that speaks gRPC to the admin listener.
func adminConn(t *testing.T, s *testutil.Service) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(s.AdminAddr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// ownServer finds the service among the gRPC servers of this process, by the address that it listens on.
func ownServer(t *testing.T, s *testutil.Service, client channelzpb.ChannelzClient) *channelzpb.Server {
	t.Helper()
	request := &channelzpb.GetServersRequest{}
	for {
		got, err := client.GetServers(testutil.Context(t), request)
		if err != nil {
			t.Fatal(err)
		}
		for _, srv := range got.Server {
			for _, socket := range srv.ListenSocket {
				if socket.Name == s.GRPCAddr().String() {
					return srv
				}
			}
			request.StartServerId = srv.Ref.ServerId + 1
		}
		if got.End {
			t.Fatalf("no server listens on %s", s.GRPCAddr())
		}
	}
}

// TestChannelz: the admin listener tells how many calls there were and over which connections, and nothing that was in them.
func TestChannelz(t *testing.T) {
	s := testutil.Start(t, testutil.MutualTLS, withChannelz)
	jwt := testutil.Credential(s.Atlas)
	made := s.GRPCCaller(t).Call(testutil.Context(t), testutil.Create, jwt...)
	testutil.WantCreated.Check(t, made)
	refused := s.GRPCCaller(t).Call(testutil.Context(t), testutil.Create, "authorization", "JWT hunter2")
	if refused.Code == codes.OK {
		t.Fatal("a bad JWT is accepted")
	}

	client := channelzpb.NewChannelzClient(adminConn(t, s))
	var told strings.Builder
	var own *channelzpb.Server
	testutil.Eventually(t, func() bool { // a call is counted once its answer is under way
		own = ownServer(t, s, client)
		return own.Data.CallsStarted == 2 && own.Data.CallsSucceeded == 1 && own.Data.CallsFailed == 1
	}, "the calls are not counted")
	told.WriteString(prototext.Format(own))
	sockets, err := client.GetServerSockets(testutil.Context(t), &channelzpb.GetServerSocketsRequest{ServerId: own.Ref.ServerId})
	if err != nil || len(sockets.SocketRef) != 2 || !sockets.End {
		t.Fatalf("%v, %v: want two connections", err, sockets)
	}
	streams := int64(0)
	for _, ref := range sockets.SocketRef {
		got, err := client.GetSocket(testutil.Context(t), &channelzpb.GetSocketRequest{SocketId: ref.SocketId})
		if err != nil {
			t.Fatal(err)
		}
		told.WriteString(prototext.Format(got))
		socket := got.Socket
		streams += socket.Data.StreamsStarted
		if ip := socket.GetRemote().GetTcpipAddress().GetIpAddress(); string(ip) != "\x7f\x00\x00\x01" {
			t.Errorf("a connection from %v", socket.Remote)
		}
		if cert := socket.GetSecurity().GetTls().GetRemoteCertificate(); string(cert) != string(s.Certs.Client.Certificate[0]) {
			t.Errorf("the certificate that the client shows has %d bytes, want its own", len(cert))
		}
	}
	if streams != 2 {
		t.Errorf("%d streams, want 2", streams)
	}
	channels, err := client.GetTopChannels(testutil.Context(t), &channelzpb.GetTopChannelsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	told.WriteString(prototext.Format(channels))
	for _, secret := range []string{strings.TrimPrefix(jwt[1], "JWT "), made.Token, "hunter2"} {
		if strings.Contains(told.String(), secret) {
			t.Error("channelz tells a secret")
		}
	}
}

// TestChannelzReflection: grpcurl finds channelz without a .proto file.
func TestChannelzReflection(t *testing.T) {
	s := testutil.Start(t, testutil.Plaintext, withChannelz)
	if got := listServices(t, adminConn(t, s)); !strings.Contains(got, "grpc.channelz.v1.Channelz") || strings.Contains(got, "EphemeralToken") {
		t.Errorf("the admin listener has %s", got)
	}
}

// listServices are the names that reflection tells.
func listServices(t *testing.T, conn *grpc.ClientConn) string {
	t.Helper()
	stream, err := reflectionpb.NewServerReflectionClient(conn).ServerReflectionInfo(testutil.Context(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}}); err != nil {
		t.Fatal(err)
	}
	answer, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	return prototext.Format(answer)
}

// TestChannelzStop: a stream that somebody leaves open on the admin listener holds up no stop.
func TestChannelzStop(t *testing.T) {
	s := testutil.Start(t, testutil.Plaintext, withChannelz)
	stream, err := reflectionpb.NewServerReflectionClient(adminConn(t, s)).ServerReflectionInfo(testutil.Context(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}}); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("it takes %v to stop", took)
	}
	if _, err := stream.Recv(); err == nil {
		t.Error("the stream is still open")
	}
}

// TestChannelzPlace: channelz is on the admin listener beside its pages, on no listener for callers, and nowhere unless somebody has
// asked for it.
func TestChannelzPlace(t *testing.T) {
	for _, on := range []bool{false, true} {
		s := testutil.Start(t, testutil.Plaintext, func(c *server.Config, _ *atlas.Config) { c.Debug = on })
		ask := func(conn *grpc.ClientConn) codes.Code {
			_, err := channelzpb.NewChannelzClient(conn).GetServers(testutil.Context(t), &channelzpb.GetServersRequest{})
			return status.Code(err)
		}
		want := map[bool]codes.Code{false: codes.Unavailable, true: codes.OK}[on] // it speaks no HTTP/2 unless it has to
		if got := ask(adminConn(t, s)); got != want {
			t.Errorf("channelz %v: the admin listener: %v, want %v", on, got, want)
		}
		if got := ask(s.GRPCConn(t)); got != codes.Unimplemented {
			t.Errorf("channelz %v: the gRPC listener: %v", on, got)
		}
		if got := listServices(t, s.GRPCConn(t)); strings.Contains(got, "channelz") {
			t.Errorf("channelz %v: the gRPC listener tells of it: %s", on, got)
		}
		testutil.WantNoRoute.Check(t, s.RESTCaller(t).Do(testutil.Context(t), http.MethodPost, "/grpc.channelz.v1.Channelz/GetServers", nil))
		for _, path := range []string{"/", "/healthz", "/metrics"} {
			if code, body := s.Get(t, path); code != http.StatusOK || path == "/" && strings.Contains(body, "/grpc.channelz.v1.Channelz/") != on {
				t.Errorf("channelz %v: %s: %d %q", on, path, code, body)
			}
		}
	}
}
