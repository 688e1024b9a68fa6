{{/* Parts of every pod. Each takes a dict: root, it (its settings), component, and what it names. */}}

{{- define "forcegauge.podMeta" -}}
{{- $extra := dict -}}
{{- with .pool }}{{ $_ := set $extra "forcegauge/pool" . }}{{ end -}}
{{- if .stores }}{{ $_ := set $extra "forcegauge/storage" "true" }}{{ end -}}
labels:
  {{- /* no version: Redis would be restarted by every upgrade */}}
  {{- include "forcegauge.selector" (list .root .component) | nindent 2 }}
  {{- with mergeOverwrite (deepCopy .root.Values.commonLabels) (deepCopy .it.podLabels) $extra }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- $own := .annotations | default dict -}}
{{- if .config }}{{ $_ := set $own "checksum/config" (printf "%s%s" (include "forcegauge.config" .root) .root.Values.externalRedis.url | sha256sum) }}{{ end -}}
{{- with mergeOverwrite (deepCopy .it.podAnnotations) $own }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "forcegauge.podSpec" -}}
serviceAccountName: {{ .account | default (include "forcegauge.serviceAccount" .root) | quote }}
automountServiceAccountToken: false
enableServiceLinks: false
terminationGracePeriodSeconds: {{ int64 .it.terminationGracePeriodSeconds }}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .it.podSecurityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .it.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with .it.runtimeClassName }}
runtimeClassName: {{ . | quote }}
{{- end }}
{{- with .it.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .it.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with include "forcegauge.affinity" . | fromYaml }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .it.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- $own := dict "labelSelector" (dict "matchLabels" (include "forcegauge.podSelector" $ | fromYaml)) }}
  {{- range . }}
  - {{- toYaml (hasKey . "labelSelector" | ternary . (merge (deepCopy .) $own)) | nindent 4 }}
  {{- end }}
{{- end }}
{{- end -}}

{{- define "forcegauge.podSelector" -}}
{{ include "forcegauge.selector" (list .root .component) }}
{{- with .pool }}
forcegauge/pool: {{ . | quote }}
{{- end }}
{{- end -}}

{{- define "forcegauge.affinity" -}}
{{- $affinity := deepCopy .it.affinity -}}
{{- if and .stores (include "forcegauge.oneNode" .root) -}}
{{- $labels := dict "app.kubernetes.io/instance" .root.Release.Name "forcegauge/storage" "true" -}}
{{- $term := dict "topologyKey" "kubernetes.io/hostname" "labelSelector" (dict "matchLabels" $labels) -}}
{{- $pods := $affinity.podAffinity | default dict -}}
{{- $key := "requiredDuringSchedulingIgnoredDuringExecution" -}}
{{- $_ := set $pods $key (append (get $pods $key | default list) $term) -}}
{{- $_ := set $affinity "podAffinity" $pods -}}
{{- end -}}
{{ toYaml $affinity }}
{{- end -}}

{{- define "forcegauge.container" -}}
image: {{ include "forcegauge.image" (list .root .it.image) | quote }}
imagePullPolicy: {{ include "forcegauge.pullPolicy" (list .root .it.image) }}
{{- with .it.securityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .it.resources }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Environment of the monitor's processes; Kubernetes puts the password into the URL. */}}
{{- define "forcegauge.environment" -}}
env:
  - name: HOME
    value: /tmp
  {{- if .root.Values.redis.enabled }}
  - name: REDIS_PASSWORD
    valueFrom:
      secretKeyRef:
        name: {{ include "forcegauge.redisSecret" .root | quote }}
        key: password
  - name: FORCEGAUGE_MONITOR_REDIS_URL
    value: redis://:$(REDIS_PASSWORD)@{{ include "forcegauge.fullname" .root }}-redis:6379/0
  {{- else }}
  - name: FORCEGAUGE_MONITOR_REDIS_URL
    valueFrom:
      secretKeyRef:
        name: {{ include "forcegauge.redisSecret" .root | quote }}
        key: {{ .root.Values.externalRedis.existingSecret | empty | ternary "url" .root.Values.externalRedis.existingSecretKey | quote }}
  {{- end }}
  {{- with .own }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- with include "forcegauge.extraEnv" . }}
  {{- . | nindent 2 }}
  {{- end }}
envFrom:
  - configMapRef:
      name: {{ include "forcegauge.fullname" .root }}-config
  {{- if and .stores .root.Values.storage.existingSecret }}
  - secretRef:
      name: {{ .root.Values.storage.existingSecret | quote }}
  {{- end }}
  {{- with .it.extraEnvFrom }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{- define "forcegauge.extraEnv" -}}
{{- range $name, $value := .it.extraEnv }}
- name: {{ $name | quote }}
  {{- if kindIs "map" $value }}
  {{- toYaml $value | nindent 2 }}
  {{- else }}
  value: {{ $value | quote }}
  {{- end }}
{{- end }}
{{- end -}}

{{- define "forcegauge.mounts" -}}
- name: tmp
  mountPath: /tmp
{{- if .stores }}
- name: storage
  mountPath: /var/lib/forcegauge
{{- range $name, $one := .root.Values.checkpoints }}
- name: checkpoints-{{ $name }}
  mountPath: {{ $one.mountPath | quote }}
  {{- with $one.subPath }}
  subPath: {{ . | quote }}
  {{- end }}
  readOnly: {{ dig "readOnly" true $one }}
{{- end }}
{{- end }}
{{- with .it.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "forcegauge.volumes" -}}
- name: tmp
  emptyDir: {}
{{- if .stores }}
- name: storage
  {{- if .root.Values.storage.persistence.enabled }}
  persistentVolumeClaim:
    claimName: {{ include "forcegauge.storageClaim" .root | quote }}
  {{- else }}
  emptyDir: {}
  {{- end }}
{{- range $name, $one := .root.Values.checkpoints }}
- name: checkpoints-{{ $name }}
  persistentVolumeClaim:
    claimName: {{ $one.claim | quote }}
{{- end }}
{{- end }}
{{- with .it.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* A file that is touched while the process works: no probe waits for Redis. Takes seconds. */}}
{{- define "forcegauge.alive" -}}
startupProbe:
  exec:
    command: [sh, -c, {{ printf "test -n \"$(find /tmp/alive -newermt '-%d sec')\"" (int .) | quote }}]
  periodSeconds: 5
  timeoutSeconds: 10
  failureThreshold: 60
livenessProbe:
  exec:
    command: [sh, -c, {{ printf "test -n \"$(find /tmp/alive -newermt '-%d sec')\"" (int .) | quote }}]
  periodSeconds: 30
  timeoutSeconds: 10
{{- end -}}
