{{- define "tokend.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "tokend.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "tokend.labels" -}}
{{ include "tokend.selector" . }}
app.kubernetes.io/version: {{ .Values.image.tag | default .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "tokend.image" -}}
{{- if .Values.image.digest }}{{ .Values.image.repository }}@{{ .Values.image.digest }}{{ else }}{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{- define "tokend.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}{{ .Values.serviceAccount.name | default (include "tokend.name" .) }}{{ else }}{{ .Values.serviceAccount.name | default "default" }}{{ end }}
{{- end }}

{{- define "tokend.tlsSecret" -}}
{{- if .Values.tls.certManager.enabled }}{{ include "tokend.name" . }}-tls{{ else }}{{ .Values.tls.secretName }}{{ end }}
{{- end }}

{{- /* Whether gRPC and REST have TLS: empty if not. */}}
{{- define "tokend.tls" -}}
{{- if or .Values.tls.spiffe.enabled (include "tokend.tlsSecret" .) }}true{{ end }}
{{- end }}

{{- define "tokend.spiffeMount" }}/run/spiffe{{ end }}

{{- /* The settings, as environment variables. What contradicts itself is refused here rather than by each pod. */}}
{{- define "tokend.env" -}}
{{- $v := .Values }}
{{- $secrets := "/run/secrets/tokend" }}
{{- if and $v.userauthtokenSecret.name $v.policy.config }}{{ fail "userauthtokenSecret and policy.config: choose one" }}{{ end }}
{{- if and $v.userauthtokenSecret.name (not $v.tls.clientCASecret.name) (not $v.tls.spiffe.enabled) }}{{ fail "userauthtokenSecret: anybody could use this Atlas identity: set tls.clientCASecret or tls.spiffe" }}{{ end }}
{{- if and $v.tls.spiffe.enabled (or $v.tls.secretName $v.tls.certManager.enabled $v.tls.clientCASecret.name) }}{{ fail "tls.spiffe: choose either that, or tls.secretName or tls.certManager with tls.clientCASecret" }}{{ end }}
{{- if and $v.tls.certManager.enabled $v.tls.secretName }}{{ fail "tls.secretName and tls.certManager: choose one" }}{{ end }}
{{- if and $v.tls.clientCASecret.name (not (include "tokend.tlsSecret" .)) }}{{ fail "tls.clientCASecret: it needs a server certificate: set tls.secretName or tls.certManager" }}{{ end }}
{{- if and $v.cors.origins (or $v.tls.clientCASecret.name $v.tls.spiffe.enabled) (not $v.policy.config) }}{{ fail "cors.origins: browsers show no client certificate on behalf of such a page: give a policy with a rule for oidc or atlas_jwt, or leave out tls.clientCASecret or tls.spiffe" }}{{ end }}
{{- if and (ne $v.cache.ttl "0s") (not $v.cache.redis.url) (or (gt (int $v.replicaCount) 1) $v.autoscaling.enabled) }}{{ fail "cache.ttl: several replicas remember together or not at all: set cache.redis.url" }}{{ end }}
TOKEND_GRPC_ADDR: ":9090"
TOKEND_HTTP_ADDR: ":8080"
TOKEND_ADMIN_ADDR: ":9091"
TOKEND_ATLAS_URL: {{ $v.atlas.url | quote }}
TOKEND_ATLAS_TIMEOUT: {{ $v.atlas.timeout | quote }}
{{- if $v.atlas.caSecret.name }}
TOKEND_ATLAS_CA_FILE: {{ $secrets }}/atlas-ca/ca.crt
{{- end }}
{{- if include "tokend.tlsSecret" . }}
TOKEND_TLS_CERT_FILE: {{ $secrets }}/tls/tls.crt
TOKEND_TLS_KEY_FILE: {{ $secrets }}/tls/tls.key
{{- else if $v.tls.spiffe.enabled }}
TOKEND_SPIFFE_SOCKET: unix://{{ include "tokend.spiffeMount" . }}/{{ $v.tls.spiffe.socket }}
{{- else }}
TOKEND_PLAINTEXT: "true"
{{- end }}
{{- if $v.tls.clientCASecret.name }}
TOKEND_TLS_CLIENT_CA_FILE: {{ $secrets }}/client-ca/ca.crt
{{- end }}
{{- if $v.userauthtokenSecret.name }}
TOKEND_ATLAS_USERAUTHTOKEN_FILE: {{ $secrets }}/identity/userauthtoken
{{- end }}
{{- if $v.policy.config }}
TOKEND_POLICY_FILE: /etc/tokend/policy.yaml
{{- end }}
{{- if $v.policy.oidcCASecret.name }}
TOKEND_OIDC_CA_FILE: {{ $secrets }}/oidc-ca/ca.crt
{{- end }}
{{- if ne $v.cache.ttl "0s" }}
TOKEND_CACHE_TTL: {{ $v.cache.ttl | quote }}
TOKEND_CACHE_STALE_IF_ERROR: {{ $v.cache.staleIfError | quote }}
{{- end }}
{{- with $v.cache.redis }}
{{- if .url }}
TOKEND_CACHE_REDIS_URL: {{ .url | quote }}
{{- end }}
{{- if .passwordSecret.name }}
TOKEND_CACHE_REDIS_PASSWORD_FILE: {{ $secrets }}/redis-password/password
{{- end }}
{{- if .caSecret.name }}
TOKEND_CACHE_REDIS_CA_FILE: {{ $secrets }}/redis-ca/ca.crt
{{- end }}
{{- end }}
{{- if $v.docs.enabled }}
TOKEND_DOCS: "true"
{{- end }}
{{- with $v.cors.origins }}
TOKEND_CORS_ORIGIN: {{ join "," . | quote }}
{{- end }}
TOKEND_DRAIN_DELAY: {{ printf "%ds" (int $v.drain.delaySeconds) }}
TOKEND_DRAIN_TIMEOUT: {{ printf "%ds" (int $v.drain.timeoutSeconds) }}
TOKEND_LOG_LEVEL: {{ $v.log.level }}
TOKEND_LOG_FORMAT: {{ $v.log.format }}
{{- if $v.audit.enabled }}
TOKEND_AUDIT_FILE: "-"
{{- end }}
{{- range $name, $value := $v.extraEnv }}
{{ $name }}: {{ $value | quote }}
{{- end }}
{{- end }}

{{- /* The secrets that are mounted: folder, secret, key in it, file name. */}}
{{- define "tokend.secretMounts" -}}
{{- $v := .Values }}
{{- with $v.atlas.caSecret }}{{ if .name }}
- {folder: atlas-ca, secret: {{ .name }}, items: [{key: {{ .key | default "ca.crt" }}, path: ca.crt}]}
{{- end }}{{ end }}
{{- if include "tokend.tlsSecret" . }}
- {folder: tls, secret: {{ include "tokend.tlsSecret" . }}, items: [{key: tls.crt, path: tls.crt}, {key: tls.key, path: tls.key}]}
{{- end }}
{{- with $v.tls.clientCASecret }}{{ if .name }}
- {folder: client-ca, secret: {{ .name }}, items: [{key: {{ .key | default "ca.crt" }}, path: ca.crt}]}
{{- end }}{{ end }}
{{- with $v.userauthtokenSecret }}{{ if .name }}
- {folder: identity, secret: {{ .name }}, items: [{key: {{ .key | default "userauthtoken" }}, path: userauthtoken}]}
{{- end }}{{ end }}
{{- with $v.policy.oidcCASecret }}{{ if .name }}
- {folder: oidc-ca, secret: {{ .name }}, items: [{key: {{ .key | default "ca.crt" }}, path: ca.crt}]}
{{- end }}{{ end }}
{{- with $v.cache.redis.passwordSecret }}{{ if .name }}
- {folder: redis-password, secret: {{ .name }}, items: [{key: {{ .key | default "password" }}, path: password}]}
{{- end }}{{ end }}
{{- with $v.cache.redis.caSecret }}{{ if .name }}
- {folder: redis-ca, secret: {{ .name }}, items: [{key: {{ .key | default "ca.crt" }}, path: ca.crt}]}
{{- end }}{{ end }}
{{- end }}
