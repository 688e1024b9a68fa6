{{- define "forcegauge.name" -}}
{{- .Values.nameOverride | default .Chart.Name -}}
{{- end -}}

{{/* Short enough for a ScaledJob's label: NAME-worker-POOL in 63 characters. */}}
{{- define "forcegauge.fullname" -}}
{{- $name := .Values.nameOverride | default .Chart.Name -}}
{{- $both := contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) -}}
{{- .Values.fullnameOverride | default $both | trunc 38 | replace "." "-" | trimAll "-" -}}
{{- end -}}

{{/* Never changes: selectors cannot. Takes (list root component). */}}
{{- define "forcegauge.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "forcegauge.name" $root | quote }}
app.kubernetes.io/instance: {{ $root.Release.Name | quote }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* Takes (list root component), and more labels where there are any. */}}
{{- define "forcegauge.labels" -}}
{{- $root := index . 0 -}}
{{ include "forcegauge.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: forcegauge
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- with mergeOverwrite (deepCopy $root.Values.commonLabels) (gt (len .) 2 | ternary (last .) dict) }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Takes (list root image): a component's image, or the chart's. Another repository has another digest. */}}
{{- define "forcegauge.image" -}}
{{- $root := index . 0 -}}
{{- $all := $root.Values.image -}}
{{- $own := index . 1 | default dict -}}
{{- $digest := $own.digest | default (or $own.repository $own.tag | empty | ternary $all.digest "") -}}
{{- $own.repository | default $all.repository -}}
{{- if $digest }}@{{ $digest }}{{ else }}:{{ $own.tag | default $all.tag | default $root.Chart.AppVersion }}{{ end -}}
{{- end -}}

{{- define "forcegauge.pullPolicy" -}}
{{- $root := index . 0 -}}
{{- (index . 1 | default dict).pullPolicy | default $root.Values.image.pullPolicy -}}
{{- end -}}

{{/* The whole of what is set for a pool of workers. Takes (list root pool); gives YAML. */}}
{{- define "forcegauge.pool" -}}
{{- $root := index . 0 -}}
{{- $pool := index $root.Values.workers (index . 1) | default dict -}}
{{- mergeOverwrite (deepCopy $root.Values.podDefaults) (deepCopy $root.Values.workerDefaults) (deepCopy $pool) | toYaml -}}
{{- end -}}

{{- define "forcegauge.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (.Values.serviceAccount.create | ternary (include "forcegauge.fullname" .) "default") -}}
{{- end -}}

{{- define "forcegauge.tokenSecret" -}}
{{- .Values.token.existingSecret | default (printf "%s-token" (include "forcegauge.fullname" .)) -}}
{{- end -}}

{{- define "forcegauge.redisSecret" -}}
{{- $given := .Values.redis.enabled | ternary .Values.redis.existingSecret .Values.externalRedis.existingSecret -}}
{{- $given | default (printf "%s-redis" (include "forcegauge.fullname" .)) -}}
{{- end -}}

{{- define "forcegauge.storageClaim" -}}
{{- .Values.storage.persistence.existingClaim | default (printf "%s-storage" (include "forcegauge.fullname" .)) -}}
{{- end -}}

{{- define "forcegauge.url" -}}
http://{{ include "forcegauge.fullname" . }}.{{ .Release.Namespace }}.svc:{{ .Values.api.service.port }}
{{- end -}}

{{/* Where the storage's volume can be mounted on one node only, all its pods go there. */}}
{{- define "forcegauge.oneNode" -}}
{{- $volume := .Values.storage.persistence -}}
{{- if and $volume.enabled (eq $volume.accessMode "ReadWriteOnce") }}true{{ end -}}
{{- end -}}

{{/* Takes (list root pool's-settings): "ScaledObject", "ScaledJob" or nothing. */}}
{{- define "forcegauge.scaled" -}}
{{- $root := index . 0 -}}
{{- $keda := (index . 1).keda -}}
{{- if and $keda.enabled ($root.Capabilities.APIVersions.Has "keda.sh/v1alpha1") }}{{ $keda.kind }}{{ end -}}
{{- end -}}
