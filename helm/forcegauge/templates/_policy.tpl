{{/* Heads and rules of NetworkPolicies. */}}

{{/* Takes (list root component). */}}
{{- define "forcegauge.policy" -}}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {{ include "forcegauge.fullname" (index . 0) }}-{{ index . 1 }}
  namespace: {{ (index . 0).Release.Namespace | quote }}
  labels:
    {{- include "forcegauge.labels" . | nindent 4 }}
spec:
  podSelector:
    matchLabels:
      {{- include "forcegauge.selector" . | nindent 6 }}
  policyTypes: [Ingress, Egress]
{{- end -}}

{{- define "forcegauge.peer" -}}
- podSelector:
    matchLabels:
      {{- include "forcegauge.selector" . | nindent 6 }}
{{- end -}}

{{- define "forcegauge.toDNS" -}}
- ports:
    - port: 53
      protocol: UDP
    - port: 53
      protocol: TCP
{{- end -}}

{{- define "forcegauge.toRedis" -}}
{{- if .Values.redis.enabled -}}
- to:
    {{- include "forcegauge.peer" (list . "redis") | nindent 4 }}
  ports:
    - port: 6379
{{- else -}}
- ports:
    - port: {{ int64 .Values.externalRedis.port }}
{{- end }}
{{- end -}}

{{/* A bucket's address is not known here, its port is. */}}
{{- define "forcegauge.toStorage" -}}
{{- $bucket := list (dict "ports" (list (dict "port" 443))) -}}
{{- with concat (.Values.storage.url | empty | ternary list $bucket) .Values.networkPolicy.extraEgress -}}
{{ toYaml . }}
{{- end -}}
{{- end -}}

{{- define "forcegauge.toGrafana" -}}
{{- $url := urlParse .Values.grafana.url -}}
{{- $port := regexFind ":[0-9]+$" $url.host | trimPrefix ":" -}}
- ports:
    - port: {{ $port | default (eq $url.scheme "https" | ternary "443" "80") }}
{{- end -}}
