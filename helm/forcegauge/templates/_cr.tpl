{{/* Whether the cluster knows a kind of object. Takes (list root group/version). */}}
{{- define "forcegauge.knows" -}}
{{- if (index . 0).Capabilities.APIVersions.Has (index . 1) }}true{{ end -}}
{{- end -}}

{{- define "forcegauge.crMeta" -}}
name: {{ include "forcegauge.fullname" (index . 0) }}-{{ index . 1 }}
labels:
  {{- include "forcegauge.labels" (list (index . 0) "monitoring" (index . 0).Values.monitoring.additionalLabels) | nindent 2 }}
{{- end -}}

{{/* By which Prometheus may read the API's pages, where they are protected. */}}
{{- define "forcegauge.authorization" -}}
{{- if .Values.config.protectPages -}}
authorization:
  credentials:
    name: {{ include "forcegauge.tokenSecret" . | quote }}
    key: readToken
{{- end -}}
{{- end -}}
