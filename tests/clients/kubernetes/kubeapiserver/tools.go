// SPDX-License-Identifier: Apache-2.0

//go:build tools

// Package kubeapiserver keeps the version of the unmodified kube-apiserver that the suite builds and runs.
package kubeapiserver

import _ "k8s.io/kubernetes/cmd/kube-apiserver"
