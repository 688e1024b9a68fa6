{{/* The pod of a worker. Takes a dict: root, it, pool, component, config, stores, and job. */}}
{{- define "forcegauge.worker" -}}
metadata:
  {{- include "forcegauge.podMeta" . | nindent 2 }}
spec:
  {{- include "forcegauge.podSpec" . | nindent 2 }}
  {{- if .job }}
  restartPolicy: Never
  {{- end }}
  containers:
    - name: worker
      {{- include "forcegauge.container" . | nindent 6 }}
      command: [forcegauge]
      args:
        - monitor
        - worker
        - --queues={{ join "," .it.queues }}
        - --pool=solo
        - --alive-file=/tmp/alive
        {{- if .job }}
        - --idle-exit={{ int64 .it.keda.idleSeconds }}
        {{- end }}
      {{- include "forcegauge.environment" . | nindent 6 }}
      {{- include "forcegauge.alive" 60 | nindent 6 }}
      volumeMounts:
        {{- include "forcegauge.mounts" . | nindent 8 }}
  volumes:
    {{- include "forcegauge.volumes" . | nindent 4 }}
{{- end -}}

{{/* What waits in a pool's queues by priority and, for a Deployment, what is being done. */}}
{{- define "forcegauge.triggers" -}}
{{- $keys := list -}}
{{- range .it.queues -}}
{{- $keys = append $keys . -}}
{{- if ne . "scores" }}{{ $keys = append (append $keys (printf "%s:3" .)) (printf "%s:6" .) }}{{ end -}}
{{- end -}}
{{- if not .job }}{{ $keys = append $keys "unacked" }}{{ end -}}
{{- $root := .root -}}
{{- $tasks := int .it.keda.tasksPerWorker -}}
{{- range $keys }}
- type: redis
  metadata:
    address: {{ include "forcegauge.fullname" $root }}-redis.{{ $root.Release.Namespace }}.svc:6379
    passwordFromEnv: REDIS_PASSWORD
    databaseIndex: "0"
    listName: {{ printf "forcegauge:celery:%s" . }}
    listLength: {{ eq . "unacked" | ternary 1 $tasks | quote }}
{{- end }}
{{- end -}}
