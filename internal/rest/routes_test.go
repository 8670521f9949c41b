package rest

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"

	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
)

func TestServiceRoutes(t *testing.T) {
	supported := fileWithRules(t,
		&annotations.HttpRule{Pattern: &annotations.HttpRule_Post{Post: "/a"}},
		&annotations.HttpRule{Pattern: &annotations.HttpRule_Get{Get: "/a"}},
		&annotations.HttpRule{Pattern: &annotations.HttpRule_Put{Put: "/b"}},
		&annotations.HttpRule{Pattern: &annotations.HttpRule_Patch{Patch: "/b"}},
		&annotations.HttpRule{Pattern: &annotations.HttpRule_Delete{Delete: "/b"}},
		nil, // over gRPC only
	)
	for _, tt := range []struct {
		file protoreflect.FileDescriptor
		want routes
	}{
		{ephemeraltokenv1.File_forsta_ephemeraltoken_v1_ephemeral_token_proto, routes{"/v1/ephemeral-token": {"DELETE", "POST"}}},
		{supported, routes{"/a": {"GET", "POST"}, "/b": {"DELETE", "PATCH", "PUT"}}},
	} {
		got, err := serviceRoutes(tt.file)
		if diff := cmp.Diff(tt.want, got); diff != "" || err != nil {
			t.Errorf("error %v; routes (-want +got):\n%s", err, diff)
		}
	}
}

func TestUnsupportedRoutes(t *testing.T) {
	get := &annotations.HttpRule_Get{Get: "/a"}
	for name, rule := range map[string]*annotations.HttpRule{
		"custom verb":    {Pattern: &annotations.HttpRule_Custom{Custom: &annotations.CustomHttpPattern{Kind: "HEAD", Path: "/a"}}},
		"path parameter": {Pattern: &annotations.HttpRule_Get{Get: "/a/{id}"}},
		"second binding": {Pattern: get, AdditionalBindings: []*annotations.HttpRule{{Pattern: get}}},
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := serviceRoutes(fileWithRules(t, rule)); err == nil {
				t.Errorf("routes %v, want an error", got)
			}
		})
	}
}

// fileWithRules returns a file with a service that has a method for each rule.
func fileWithRules(t *testing.T, rules ...*annotations.HttpRule) protoreflect.FileDescriptor {
	t.Helper()
	service := &descriptorpb.ServiceDescriptorProto{Name: proto.String("S")}
	for i, rule := range rules {
		options := &descriptorpb.MethodOptions{}
		if rule != nil {
			proto.SetExtension(options, annotations.E_Http, rule)
		}
		service.Method = append(service.Method, &descriptorpb.MethodDescriptorProto{
			Name: proto.String("M" + string(rune('A'+i))), InputType: proto.String(".M"), OutputType: proto.String(".M"), Options: options,
		})
	}
	file, err := protodesc.NewFile(&descriptorpb.FileDescriptorProto{
		Name: proto.String("test.proto"), Syntax: proto.String("proto3"),
		MessageType: []*descriptorpb.DescriptorProto{{Name: proto.String("M")}},
		Service:     []*descriptorpb.ServiceDescriptorProto{service},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return file
}
