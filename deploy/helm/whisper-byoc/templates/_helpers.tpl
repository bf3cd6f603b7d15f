{{- define "whisper-byoc.name" -}}
{{- $given := .Release.Name -}}
{{- ternary $given (printf "%s-%s" $given .Chart.Name) (contains .Chart.Name $given) | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "whisper-byoc.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "whisper-byoc.metadata" -}}
name: {{ include "whisper-byoc.name" . }}
namespace: {{ .Release.Namespace }}
labels:
  {{- include "whisper-byoc.selector" . | nindent 2 }}
  app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
  app.kubernetes.io/managed-by: {{ .Release.Service }}
  helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- /* Before SIGTERM; to unregister (3 s); for live streams to go on; to drain; to stop what is left and close (12 s). */}}
{{- define "whisper-byoc.graceSeconds" -}}
{{ add .Values.drain.preStopSeconds 3 .Values.drain.liveSeconds .Values.drain.seconds 12 }}
{{- end }}

{{- /* Pods come quickly, and go one by one: each takes its live streams with it. */}}
{{- define "whisper-byoc.scaling" -}}
scaleUp:
  stabilizationWindowSeconds: 0
  policies:
    - {type: Percent, value: 100, periodSeconds: 60}
    - {type: Pods, value: 2, periodSeconds: 60}
scaleDown:
  stabilizationWindowSeconds: {{ .Values.autoscaling.scaleDownSeconds }}
  policies:
    - {type: Pods, value: 1, periodSeconds: 60}
{{- end }}
