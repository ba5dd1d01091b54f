{{/*
Parts that every pod has. Call with (dict "root" $ "component" NAME "values" VALUES): values are the component's
own, with the scheduling fields of values.schema.yaml.
*/}}

{{- define "happyneurons.podMetadata" -}}
labels:
  {{- include "happyneurons.labels" . | nindent 2 }}
  {{- with .values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
annotations:
  checksum/configuration: {{ include "happyneurons.checksum" .root | quote }}
  {{- range $name, $text := .checksums }}
  checksum/{{ $name }}: {{ $text | sha256sum | trunc 40 | quote }}
  {{- end }}
  {{- with mergeOverwrite (dict) .root.Values.commonAnnotations (.values.podAnnotations | default dict) }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/* Who it runs as, and where. */}}
{{- define "happyneurons.podSettings" -}}
serviceAccountName: {{ include "happyneurons.serviceAccount" (dict "root" .root "name" (.account | default "worker")) }}
automountServiceAccountToken: {{ .token | default false }}
enableServiceLinks: false
terminationGracePeriodSeconds: {{ .values.terminationGracePeriodSeconds | default 90 }}
securityContext:
  {{- toYaml .root.Values.podSecurityContext | nindent 2 }}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
affinity:
  {{- if .values.affinity }}
  {{- toYaml .values.affinity | nindent 2 }}
  {{- else }}
  podAntiAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 100
        podAffinityTerm:
          topologyKey: kubernetes.io/hostname
          labelSelector:
            matchLabels:
              {{- include "happyneurons.selectorLabels" . | nindent 14 }}
  {{- end }}
{{- if .values.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- $own := dict "labelSelector" (dict "matchLabels" (include "happyneurons.selectorLabels" . | fromYaml)) }}
  {{- range .values.topologySpreadConstraints }}
  - {{- merge (dict) . $own | toYaml | nindent 4 }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* Environment of every container. */}}
{{- define "happyneurons.env" -}}
env:
  - {name: HOME, value: /tmp}
  {{- with .values.logLevel }}
  - {name: HPN_LOG_LEVEL, value: {{ . }}}
  {{- end }}
  {{- with .root.Values.store.s3.region }}
  - {name: AWS_REGION, value: {{ . | quote }}}
  {{- end }}
  {{- with .root.Values.store.s3.endpoint }}
  - {name: AWS_ENDPOINT_URL, value: {{ . | quote }}}
  {{- end }}
  {{- with .env }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- with .values.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- if or .root.Values.store.s3.existingSecret .values.extraEnvFrom }}
envFrom:
  {{- with .root.Values.store.s3.existingSecret }}
  - secretRef: {name: {{ . }}}
  {{- end }}
  {{- with .values.extraEnvFrom }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* Volumes of every pod: /tmp, the claim of the store, security files; shm: size of /dev/shm; secured: server or client. */}}
{{- define "happyneurons.volumes" -}}
- name: tmp
  emptyDir: {sizeLimit: {{ .tmp | default .root.Values.tmpSize }}}
{{- with .shm }}
- name: shm
  emptyDir: {medium: Memory, sizeLimit: {{ . }}}
{{- end }}
{{- if and .root.Values.store.persistence.enabled (not .storeless) }}
- name: store
  persistentVolumeClaim: {claimName: {{ include "happyneurons.storeClaim" .root }}}
{{- end }}
{{- if and .secured .root.Values.security.enabled }}
- name: security
  projected:
    defaultMode: 0440
    sources:
      - configMap: {name: {{ include "happyneurons.fullname" .root }}-security}
      {{- with .root.Values.security.filesSecret }}
      - secret: {name: {{ . }}}
      {{- end }}
      {{- with .root.Values.security.clientTokenSecret }}
      {{- if .name }}
      - secret:
          name: {{ .name }}
          items:
            - {key: {{ .key }}, path: own-token}
      {{- end }}
      {{- end }}
      {{- if .root.Values.tls.enabled }}
      - secret:
          name: {{ include "happyneurons.tlsSecret" .root }}
          items:
            - {key: tls.crt, path: tls/tls.crt}
            - {key: tls.key, path: tls/tls.key}
            {{- if not .root.Values.tls.publicAuthority }}
            - {key: ca.crt, path: tls/ca.crt}
            {{- end }}
      {{- end }}
{{- end }}
{{- with .values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "happyneurons.mounts" -}}
- {name: tmp, mountPath: /tmp}
{{- if .shm }}
- {name: shm, mountPath: /dev/shm}
{{- end }}
{{- if and .root.Values.store.persistence.enabled (not .storeless) }}
- {name: store, mountPath: {{ .root.Values.store.persistence.mountPath }}}
{{- end }}
{{- if and .secured .root.Values.security.enabled }}
- {name: security, mountPath: /etc/happyneurons, readOnly: true}
{{- end }}
{{- with .values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Ports of a gRPC server. With security, health has one of its own: the kubelet's gRPC probe speaks no TLS. */}}
{{- define "happyneurons.ports" -}}
ports:
  - {name: grpc, containerPort: {{ .port }}}
  {{- if .root.Values.metrics.enabled }}
  - {name: metrics, containerPort: {{ .root.Values.metrics.port }}}
  {{- end }}
  {{- if .root.Values.security.enabled }}
  {{- $taken := list (int .port) (ternary (int .root.Values.metrics.port) 0 .root.Values.metrics.enabled) }}
  {{- if has (int .root.Values.security.healthPort) $taken }}{{ fail (printf "security.healthPort: %v is the port of calls or of metrics, too: give another" .root.Values.security.healthPort) }}{{ end }}
  - {name: health, containerPort: {{ .root.Values.security.healthPort }}}
  {{- end }}
{{- end -}}

{{/* Probes of a gRPC server: they ask gRPC health, at its own port where there is one. */}}
{{- define "happyneurons.grpcProbes" -}}
{{- $ask := dict "grpc" (dict "port" (ternary .root.Values.security.healthPort .port .root.Values.security.enabled)) -}}
startupProbe:
  {{- toYaml $ask | nindent 2 }}
  periodSeconds: 2
  timeoutSeconds: 5
  failureThreshold: 150  # runs are replayed, stages are loaded
readinessProbe:
  {{- toYaml $ask | nindent 2 }}
  periodSeconds: 5
  timeoutSeconds: 5
livenessProbe:
  {{- toYaml $ask | nindent 2 }}
  periodSeconds: 20
  timeoutSeconds: 10
  failureThreshold: 6
{{- end -}}

{{/* Endpoints are taken away while it still answers. */}}
{{- define "happyneurons.preStop" -}}
lifecycle:
  preStop:
    sleep: {seconds: 5}
{{- end -}}
