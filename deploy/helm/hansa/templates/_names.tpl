{{- define "hansa.labels" -}}
app.kubernetes.io/name: hansa
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{- define "hansa.configMap" -}}
{{ .root.Values.existingConfigMap | default (printf "%s-%s" .root.Release.Name .os) }}
{{- end }}

{{- define "hansa.image" -}}
{{ .image.repository }}:{{ .image.tag | default .root.Chart.AppVersion }}
{{- end }}

{{- define "hansa.arguments" -}}
- --config=/var/lib/kube-proxy/config.conf
- --hostname-override=$(NODE_NAME)
{{- with .root.Values.verbosity }}
- --v={{ . }}
{{- end }}
{{- with .node.journalPath }}
- --journal-path={{ . }}
{{- end }}
{{- range .node.extraArgs }}
- {{ . | quote }}
{{- end }}
{{- end }}

{{- define "hansa.nodeName" -}}
- name: NODE_NAME
  valueFrom:
    fieldRef:
      fieldPath: spec.nodeName
{{- end }}

{{- define "hansa.nodeSelector" -}}
kubernetes.io/os: {{ .os }}
{{- range $label, $value := .root.Values.nodeSelector }}
{{- if not (kindIs "invalid" $value) }}
{{ $label }}: {{ $value | quote }}
{{- end }}
{{- end }}
{{- end }}

{{- define "hansa.probes" -}}
livenessProbe:
  httpGet: {path: /livez, port: {{ .healthPort }}}
  {{- toYaml .liveness | nindent 2 }}
readinessProbe:
  httpGet: {path: /readyz, port: {{ .healthPort }}}
  {{- toYaml .readiness | nindent 2 }}
{{- end }}
