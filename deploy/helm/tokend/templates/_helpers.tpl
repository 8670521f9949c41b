{{- define "tokend.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "tokend.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- /* Not of the selector: a Service must not send calls to the pod of helm test. */}}
{{- define "tokend.testLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}-test
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

{{- /* What an Ingress or an HTTPRoute sends to the REST port. */}}
{{- define "tokend.restPaths" -}}
- {path: /v1/ephemeral-token, type: Exact}
{{- if .Values.docs.enabled }}
- {path: /docs, type: Prefix}
- {path: /openapi.json, type: Exact}
{{- end }}
{{- end }}

{{- define "tokend.spiffeMount" }}/run/spiffe{{ end }}

{{- /* Whether tokens are cached, and whether they are kept for longer: empty if not. */}}
{{- define "tokend.caches" }}{{ if regexMatch "[1-9]" .Values.cache.ttl }}true{{ end }}{{ end }}
{{- define "tokend.keepsStale" }}{{ if regexMatch "[1-9]" .Values.cache.staleIfError }}true{{ end }}{{ end }}

{{- /* Refuses a policy with a profile that is not there, as far as the chart can tell. */}}
{{- define "tokend.checkPolicy" -}}
{{- $v := .Values }}
{{- $folder := "/run/secrets/tokend/profiles/" }}
{{- if $v.policy.config }}
{{- $config := $v.policy.config }}
{{- if kindIs "string" $config }}{{ $config = fromYaml $config }}{{ end }}
{{- $used := dict }}
{{- $profiles := $config.profiles | default dict }}
{{- range $name, $profile := $profiles }}
{{- $file := $profile.userauthtoken_file | default "" }}
{{- if hasPrefix $folder $file }}
{{- $secret := trimPrefix $folder $file }}
{{- if not (hasKey $v.policy.profileSecrets $secret) }}{{ fail (printf "policy.config: the file of profile %s is %s, and policy.profileSecrets has no %s" $name $file $secret) }}{{ end }}
{{- $_ := set $used $secret true }}
{{- end }}
{{- end }}
{{- range $config.callers }}
{{- if and .profile (ne .profile "passthrough") (not (hasKey $profiles .profile)) }}{{ fail (printf "policy.config: a rule has profile %s, and there is none of that name" .profile) }}{{ end }}
{{- end }}
{{- range $name, $_ := $v.policy.profileSecrets }}
{{- if not (hasKey $used $name) }}{{ fail (printf "policy.profileSecrets.%s: no profile of policy.config has the file %s%s" $name $folder $name) }}{{ end }}
{{- end }}
{{- else if or $v.policy.profileSecrets $v.policy.oidcCASecret.name }}{{ fail "policy.profileSecrets and policy.oidcCASecret: without policy.config they would be ignored" }}
{{- end }}
{{- end }}

{{- /* Refuses settings of the cache that would be ignored or return deleted tokens. */}}
{{- define "tokend.checkCache" -}}
{{- $c := .Values.cache }}
{{- if include "tokend.caches" . }}
{{- if and (not $c.redis.url) (or (gt (int .Values.replicaCount) 1) .Values.autoscaling.enabled) }}{{ fail "cache.ttl: several replicas need a shared cache: set cache.redis.url" }}{{ end }}
{{- else }}
{{- if include "tokend.keepsStale" . }}{{ fail "cache.staleIfError: without cache.ttl there is nothing to keep: set it too" }}{{ end }}
{{- if $c.redis.url }}{{ fail "cache.redis.url: without cache.ttl nothing is cached there: set it too" }}{{ end }}
{{- end }}
{{- if and (or $c.redis.passwordSecret.name $c.redis.caSecret.name) (not $c.redis.url) }}{{ fail "cache.redis.passwordSecret and cache.redis.caSecret: without cache.redis.url they would be ignored" }}{{ end }}
{{- if and $c.redis.caSecret.name (not (hasPrefix "rediss://" $c.redis.url)) }}{{ fail "cache.redis.caSecret: it would be ignored, since cache.redis.url is not rediss://" }}{{ end }}
{{- end }}

{{- /* The peers that a NetworkPolicy has to let in for the gateway or the ingress. */}}
{{- define "tokend.checkNetwork" -}}
{{- $v := .Values }}
{{- if and $v.networkPolicy.enabled (not $v.networkPolicy.gateways) (or $v.grpcRoute.enabled $v.httpRoute.enabled $v.ingress.enabled) }}{{ fail "networkPolicy.gateways: say where the pods of the gateway or the ingress controller are, such as [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: gateway}}}]" }}{{ end }}
{{- if and $v.autoscaling.enabled (gt (int $v.autoscaling.minReplicas) (int $v.autoscaling.maxReplicas)) }}{{ fail "autoscaling: minReplicas is more than maxReplicas" }}{{ end }}
{{- end }}

{{- /* The settings, as environment variables. Contradictions are refused here rather than by each pod. */}}
{{- define "tokend.env" -}}
{{- $v := .Values }}
{{- include "tokend.checkPolicy" . }}
{{- include "tokend.checkCache" . }}
{{- include "tokend.checkNetwork" . }}
{{- $secrets := "/run/secrets/tokend" }}
{{- if and $v.userauthtokenSecret.name $v.policy.config }}{{ fail "userauthtokenSecret and policy.config: choose one" }}{{ end }}
{{- if and $v.userauthtokenSecret.name (not $v.tls.clientCASecret.name) (not $v.tls.spiffe.enabled) }}{{ fail "userauthtokenSecret: any client could use this Atlas identity: set tls.clientCASecret or tls.spiffe" }}{{ end }}
{{- if and $v.tls.spiffe.enabled (or $v.tls.secretName $v.tls.certManager.enabled $v.tls.clientCASecret.name) }}{{ fail "tls.spiffe: choose either that, or tls.secretName or tls.certManager with tls.clientCASecret" }}{{ end }}
{{- if and $v.tls.certManager.enabled $v.tls.secretName }}{{ fail "tls.secretName and tls.certManager: choose one" }}{{ end }}
{{- if and $v.tls.clientCASecret.name (not (include "tokend.tlsSecret" .)) }}{{ fail "tls.clientCASecret: it needs a server certificate: set tls.secretName or tls.certManager" }}{{ end }}
{{- if and $v.cors.origins (or $v.tls.clientCASecret.name $v.tls.spiffe.enabled) (not $v.policy.config) }}{{ fail "cors.origins: browsers send no client certificate for such a page: give a policy with a rule for oidc or atlas_jwt, or leave out tls.clientCASecret or tls.spiffe" }}{{ end }}
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
{{- if $v.atlas.clientSecretName }}
TOKEND_ATLAS_CERT_FILE: {{ $secrets }}/atlas-client/tls.crt
TOKEND_ATLAS_KEY_FILE: {{ $secrets }}/atlas-client/tls.key
{{- end }}
{{- if include "tokend.caches" . }}
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
{{ $name }}: {{ if kindIs "map" $value }}{{ toJson $value }}{{ else }}{{ $value | quote }}{{ end }}
{{- end }}
{{- end }}

{{- /* The secrets that are mounted: folder, secret, key in it, file name. */}}
{{- define "tokend.secretMounts" -}}
{{- $v := .Values }}
{{- with $v.atlas.caSecret }}{{ if .name }}
- {folder: atlas-ca, secret: {{ .name }}, items: [{key: {{ .key | default "ca.crt" }}, path: ca.crt}]}
{{- end }}{{ end }}
{{- if $v.atlas.clientSecretName }}
- {folder: atlas-client, secret: {{ $v.atlas.clientSecretName }}, items: [{key: tls.crt, path: tls.crt}, {key: tls.key, path: tls.key}]}
{{- end }}
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
