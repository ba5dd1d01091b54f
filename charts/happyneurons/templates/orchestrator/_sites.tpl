{{/* The sites file: stage services, Kubernetes Jobs, and what the values add. */}}
{{- define "happyneurons.sites" -}}
{{- $sites := deepCopy .Values.orchestrator.sites -}}
{{- range $stage := .Values.stages -}}
{{- $site := dict "executor" "service" "address" (include "happyneurons.stageAddress" (dict "root" $ "stage" $stage)) "cores" ($stage.cores | int) -}}
{{- $_ := set $site "description" ($stage.description | default (printf "stage service %s" $stage.name)) -}}
{{- with $stage.siteResources }}{{ $_ := set $site "resources" . }}{{ end -}}
{{- if hasKey $sites $stage.name }}{{ fail (printf "stages: the name %s is a site already" $stage.name) }}{{ end -}}
{{- $_ := set $sites $stage.name $site -}}
{{- end -}}
{{- with .Values.kubernetes -}}
{{- if .enabled -}}
{{- if hasKey $sites .site }}{{ fail (printf "kubernetes.site: %s is a site already" .site) }}{{ end -}}
{{- $image := include "happyneurons.image" (dict "root" $ "name" "{stage}" "given" .imageTemplate) -}}
{{- $kubernetes := dict "namespace" $.Release.Namespace "image" $image "template" "/etc/happyneurons-sites/job.yaml" "keep_finished_s" (.keepFinishedS | int) -}}
{{- $site := dict "executor" "kubernetes" "description" .description "cores" (.cores | int) "memory_gb" .memoryGb "kubernetes" $kubernetes -}}
{{- with .nodeCores }}{{ $_ := set $kubernetes "node_cores" (. | int) }}{{ end -}}
{{- with .stageResources }}{{ $_ := set $site "resources" . }}{{ end -}}
{{- $_ := set $sites .site $site -}}
{{- end -}}
{{- end -}}
{{- if not $sites }}{{ fail "no place where jobs could run: give `stages`, `kubernetes.enabled` or `orchestrator.sites`" }}{{ end -}}
{{- toYaml $sites -}}
{{- end -}}

{{- define "happyneurons.defaultSite" -}}
{{- if .Values.orchestrator.defaultSite -}}
{{- .Values.orchestrator.defaultSite -}}
{{- else if .Values.stages -}}
{{- (first .Values.stages).name -}}
{{- else if .Values.kubernetes.enabled -}}
{{- .Values.kubernetes.site -}}
{{- else -}}
{{- keys .Values.orchestrator.sites | sortAlpha | first -}}
{{- end -}}
{{- end -}}

{{/* The pod of a Job, without what differs from job to job: name, image, arguments, resources (executors/kubernetes). */}}
{{- define "happyneurons.jobTemplate" -}}
{{- $pod := dict "root" $ "component" "job" "values" .Values.kubernetes "shm" .Values.kubernetes.sharedMemory -}}
metadata:
  {{- include "happyneurons.podMetadata" $pod | nindent 2 }}
spec:
  {{- include "happyneurons.podSettings" $pod | nindent 2 }}
  restartPolicy: Never
  containers:
    - name: job
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      {{- include "happyneurons.env" $pod | nindent 6 }}
      securityContext:
        {{- toYaml .Values.securityContext | nindent 8 }}
      volumeMounts:
        {{- include "happyneurons.mounts" $pod | nindent 8 }}
  volumes:
    {{- include "happyneurons.volumes" $pod | nindent 4 }}
{{- end -}}

{{/* How clients inside the cluster prove who they are. */}}
{{- define "happyneurons.clientEnv" -}}
{{- with .Values.security.clientTokenSecret }}
{{- if .name }}
- name: HPN_TOKEN
  valueFrom:
    secretKeyRef: {name: {{ .name }}, key: {{ .key }}}
{{- end }}
{{- end }}
{{- if .Values.tls.enabled }}
{{- if not .Values.tls.publicAuthority }}
- {name: HPN_TLS_CA, value: /etc/happyneurons/tls/ca.crt}
{{- else }}
- {name: HPN_TLS_CA, value: system}
{{- end }}
{{- if .Values.tls.mutual }}
- {name: HPN_TLS_CERT, value: /etc/happyneurons/tls/tls.crt}
- {name: HPN_TLS_KEY, value: /etc/happyneurons/tls/tls.key}
{{- end }}
{{- end }}
{{- end -}}
