{{/* Names: at most 40 characters, a letter first and no dots, so that what KServe makes of them (NAME-transformer, hosts) is valid too. */}}
{{- define "concordant.name" -}}
{{- $name := default (ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) (contains .Chart.Name .Release.Name)) .Values.fullnameOverride -}}
{{- ternary $name (printf "c-%s" $name) (regexMatch "^[a-z]" $name) | replace "." "-" | trunc 40 | trimAll "-" -}}
{{- end -}}

{{- define "concordant.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "concordant.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- define "concordant.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "concordant.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (include "concordant.name" .) -}}
{{- end -}}

{{/* What every pod of ours is: no user rights, no token, no default profile missing. */}}
{{- define "concordant.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "concordant.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "concordant.probes" -}}
{{- /* Knative has no start-up probe in the versions we know; its liveness probe waits instead. */ -}}
{{- if eq .Values.mode "Standard" -}}
startupProbe:
  httpGet: {path: /v2/health/live, port: 8080}
  periodSeconds: 5
  failureThreshold: 36
{{ end -}}
readinessProbe:
  httpGet: {path: /v2/health/ready, port: 8080}
  periodSeconds: 2
  timeoutSeconds: 2
  failureThreshold: 1
livenessProbe:
  httpGet: {path: /v2/health/live, port: 8080}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 3
  {{- if eq .Values.mode "Knative" }}
  initialDelaySeconds: 120
  {{- end }}
{{- end -}}

{{/* What predictor and transformer share beside their container: dict root, name, values. */}}
{{- define "concordant.component" -}}
minReplicas: {{ .values.minReplicas }}
maxReplicas: {{ .values.maxReplicas }}
{{- if and (eq .root.Values.mode "Standard") (ne .root.Values.autoscaling.type "none") }}
scaleMetric: cpu
scaleTarget: {{ .root.Values.autoscaling.cpuPercent }}
{{- end }}
labels:
  {{- include "concordant.labels" .root | nindent 2 }}
  app.kubernetes.io/component: {{ .name }}
serviceAccountName: {{ include "concordant.serviceAccount" .root | quote }}
automountServiceAccountToken: false
{{- if eq .root.Values.mode "Standard" }}
terminationGracePeriodSeconds: 60
{{- end }}
securityContext:
  {{- include "concordant.podSecurity" .root | nindent 2 }}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - {name: {{ . | quote }}}
  {{- end }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- if eq .root.Values.mode "Standard" }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: {{ .root.Values.spread.topologyKey | quote }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "concordant.selector" .root | nindent 8 }}
        app.kubernetes.io/component: {{ .name }}
{{- end }}
{{- end -}}

{{- define "concordant.container" -}}
image: {{ include "concordant.image" .root | quote }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
securityContext:
  {{- include "concordant.containerSecurity" .root | nindent 2 }}
ports:
  - {name: http1, containerPort: 8080, protocol: TCP}
resources: {{- toYaml .values.resources | nindent 2 }}
{{ include "concordant.probes" .root }}
{{- end -}}

{{/* What contradicts itself is said in our own words before anything is made. */}}
{{- define "concordant.check" -}}
{{- if and (ne .Values.store.online "sqlite") (not .Values.store.existingSecret) -}}
{{- fail (printf "store.existingSecret: name the secret with the connection string of %s (key %s)." .Values.store.online .Values.store.secretKey) -}}
{{- end -}}
{{- range $name := list "predictor" "transformer" -}}
{{- $c := index $.Values $name -}}
{{- if gt (int $c.minReplicas) (int $c.maxReplicas) -}}
{{- fail (printf "%s.minReplicas is more than %s.maxReplicas." $name $name) -}}
{{- end -}}
{{- end -}}
{{- if and (eq .Values.authorization.type "istio") (not .Values.authorization.principals) -}}
{{- fail "authorization.principals: list who may ask, or nobody can." -}}
{{- end -}}
{{- if and .Values.authorization.oidcIssuer (not .Values.authorization.oidcJwksUri) -}}
{{- fail "authorization.oidcJwksUri: say where the keys of authorization.oidcIssuer are." -}}
{{- end -}}
{{- if and .Values.schedule.enabled (not .Values.schedule.source) -}}
{{- fail "schedule.source: say where the records lie, s3://... or a folder below the claim of schedule.config." -}}
{{- end -}}
{{- if and .Values.page.enabled (eq .Values.authorization.type "none") -}}
{{- fail "page.enabled: the page asks nobody who they are. Put authorization in front of it (authorization.type: istio)." -}}
{{- end -}}
{{- if and (.Capabilities.APIVersions.Has "apps/v1/Deployment") (not (.Capabilities.APIVersions.Has "serving.kserve.io/v1beta1/InferenceService")) -}}
{{- fail "There is no KServe in this cluster (no InferenceService in serving.kserve.io/v1beta1). Install KServe 0.20 or newer first: charts/README.md." -}}
{{- end -}}
{{- end -}}

{{/* Ports on which a pod of ours is asked: its own, or those of Knative's queue-proxy beside it. */}}
{{- define "concordant.askPorts" -}}
{{- if eq .Values.mode "Knative" -}}
[{protocol: TCP, port: 8012}, {protocol: TCP, port: 8112}]
{{- else -}}
[{protocol: TCP, port: 8080}]
{{- end -}}
{{- end -}}
