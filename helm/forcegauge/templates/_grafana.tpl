{{- define "forcegauge.grafanaToken" -}}
- name: grafana
  secret:
    secretName: {{ .Values.grafana.existingSecret | quote }}
    items:
      - key: {{ .Values.grafana.existingSecretKey | quote }}
        path: token
{{- end -}}
