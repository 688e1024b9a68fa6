{{- define "forcegauge.grafanaToken" -}}
- name: grafana
  secret:
    secretName: {{ .Values.grafana.existingSecret }}
    items:
      - key: {{ .Values.grafana.existingSecretKey }}
        path: token
{{- end -}}
