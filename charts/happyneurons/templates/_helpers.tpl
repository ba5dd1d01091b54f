{{/* Names and labels. */}}
{{- define "happyneurons.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "happyneurons.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 30 | trimSuffix "-" -}}
{{- else if contains (include "happyneurons.name" .) .Release.Name -}}
{{- .Release.Name | trunc 30 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "happyneurons.name" .) | trunc 30 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Call with (dict "root" $ "component" "orchestrator"). */}}
{{- define "happyneurons.selectorLabels" -}}
app.kubernetes.io/name: {{ include "happyneurons.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "happyneurons.labels" -}}
{{ include "happyneurons.selectorLabels" . }}
app.kubernetes.io/version: {{ .root.Values.image.tag | default .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: happyneurons
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* metadata of an object: dict root, component, name; also annotations and labels. */}}
{{- define "happyneurons.metadata" -}}
name: {{ .name }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "happyneurons.labels" . | nindent 2 }}
  {{- with .labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with mergeOverwrite (dict) .root.Values.commonAnnotations (.annotations | default dict) }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "happyneurons.image" -}}
{{- $tag := .root.Values.image.tag | default .root.Chart.AppVersion -}}
{{- .given | default (printf "%s/%s:%s" .root.Values.image.prefix .name $tag) -}}
{{- end -}}

{{/* The account of a component's pods: dict root, name (orchestrator, worker). */}}
{{- define "happyneurons.serviceAccount" -}}
{{- if .root.Values.serviceAccount.create -}}
{{- printf "%s-%s" (include "happyneurons.fullname" .root) .name -}}
{{- else -}}
{{- .root.Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{/* The store. */}}
{{- define "happyneurons.storeUri" -}}
{{- .Values.store.uri | default (printf "file://%s" .Values.store.persistence.mountPath) -}}
{{- end -}}

{{- define "happyneurons.storeClaim" -}}
{{- .Values.store.persistence.existingClaim | default (printf "%s-store" (include "happyneurons.fullname" .)) -}}
{{- end -}}

{{/* Where clients inside the cluster find the orchestrator. */}}
{{- define "happyneurons.orchestratorAddress" -}}
{{- printf "%s-orchestrator.%s.svc:%v" (include "happyneurons.fullname" .) .Release.Namespace .Values.orchestrator.port -}}
{{- end -}}

{{/* Pods of a stage service, one DNS record each. */}}
{{- define "happyneurons.stageAddress" -}}
{{- printf "dns:///%s-stage-%s-pods.%s.svc.%s:%v" (include "happyneurons.fullname" .root) .stage.name .root.Release.Namespace .root.Values.clusterDomain (.stage.port | default 50051) -}}
{{- end -}}

{{- define "happyneurons.tlsSecret" -}}
{{- .Values.tls.existingSecret | default (printf "%s-tls" (include "happyneurons.fullname" .)) -}}
{{- end -}}

{{/* Hash of what pods read when they start: they are replaced when it changes. */}}
{{- define "happyneurons.checksum" -}}
{{- $texts := list (toYaml .Values.store) (toYaml .Values.security) (toYaml .Values.tls) -}}
{{- join "\n" $texts | sha256sum | trunc 40 -}}
{{- end -}}
