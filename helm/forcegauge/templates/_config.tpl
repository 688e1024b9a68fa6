{{/* The settings as environment variables of the monitor. */}}
{{- define "forcegauge.config" -}}
{{- $volume := "/var/lib/forcegauge" -}}
{{- $roots := .Values.config.roots -}}
{{- range .Values.checkpoints }}{{ $roots = append $roots .mountPath }}{{ end -}}
FORCEGAUGE_MONITOR_STORAGE: {{ .Values.storage.url | default $volume | quote }}
FORCEGAUGE_MONITOR_WORK: {{ $volume | quote }}
FORCEGAUGE_MONITOR_PORT: "8790"
{{- with $roots }}
FORCEGAUGE_MONITOR_ROOTS: {{ join "," . | quote }}
{{- end }}
{{- range $name, $value := omit .Values.config "roots" }}
FORCEGAUGE_MONITOR_{{ snakecase $name | upper }}: {{ kindIs "string" $value | ternary $value (toJson $value) | quote }}
{{- end }}
{{- end -}}

{{/* What contradicts itself is refused, with the keys to change. */}}
{{- define "forcegauge.check" -}}
{{- $outside := or .Values.externalRedis.url .Values.externalRedis.existingSecret -}}
{{- if and .Values.redis.enabled $outside -}}
{{- fail "redis.enabled and externalRedis cannot both be given: set redis.enabled=false to use the external one" -}}
{{- end -}}
{{- if not (or .Values.redis.enabled $outside) -}}
{{- fail "redis.enabled is false: give externalRedis.existingSecret or externalRedis.url" -}}
{{- end -}}
{{- if and .Values.grafana.apply.enabled (not (and .Values.grafana.url .Values.grafana.existingSecret)) -}}
{{- fail "grafana.apply.enabled needs grafana.url and grafana.existingSecret" -}}
{{- end -}}
{{- if and .Values.grafana.apply.datasource (not .Values.grafana.apply.alerts) -}}
{{- fail "grafana.apply.datasource is for grafana.apply.alerts alone" -}}
{{- end -}}
{{- if and .Values.grafana.url .Values.grafana.annotations (not .Values.grafana.existingSecret) -}}
{{- fail "grafana.url needs grafana.existingSecret, the token of a service account" -}}
{{- end -}}
{{- $most := 0 -}}
{{- range $name, $_ := .Values.workers -}}
{{- $pool := include "forcegauge.pool" (list $ $name) | fromYaml -}}
{{- if $pool.enabled -}}
{{- $most = add $most ($pool.keda.enabled | ternary $pool.keda.maxReplicas $pool.replicas) -}}
{{- if and $pool.keda.enabled (gt (int $pool.keda.minReplicas) (int $pool.keda.maxReplicas)) -}}
{{- fail (printf "workers.%s.keda.minReplicas is more than workers.%s.keda.maxReplicas" $name $name) -}}
{{- end -}}
{{- if and $pool.keda.enabled $outside (not $pool.keda.triggers) -}}
{{- fail (printf "workers.%s.keda.enabled needs workers.%s.keda.triggers with externalRedis" $name $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and (not .Values.storage.persistence.enabled) (gt (int $most) 1) -}}
{{- fail (printf "storage.persistence.enabled=false allows one worker, and workers has %d: they share the files of a snapshot" (int $most)) -}}
{{- end -}}
{{- end -}}
