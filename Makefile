# Twill's build. `make help` lists the targets.

BIN     := bin
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X main.version=$(VERSION)
# Releases and the node's side are static: they run on any distribution.
export CGO_ENABLED := 0

.PHONY: help
help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## build twill, twill-cni and twill-lab into bin/
	@mkdir -p $(BIN)
	@echo "building $(BIN)/twill, twill-cni and twill-lab (the first time takes minutes)"
	@go build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/ ./cmd/...

.PHONY: demo
demo: build ## run the classic exercise on a three-node lab (needs root)
	@./hack/as-root $(BIN)/twill lab demo

.PHONY: demo-kubernetes
demo-kubernetes: build ## the same exercise with kubectl, on a real cluster onto which Twill is applied (needs root)
	@$(MAKE) --no-print-directory image VERSION=dev
	@dir=$$(./hack/kubernetes) && ./hack/as-root ./hack/kubernetes-images "$$dir" && ./hack/as-root $(BIN)/twill lab demo --kubernetes "$$dir"

.PHONY: test
test: ## run all tests: unit, properties, and the real kernel in namespaces (needs root for these)
	@./hack/as-root ./hack/test
	@cd test/chart && go test -count=1 ./...

.PHONY: proof
proof: ## try the properties with 100,000 random cases each (needs root; CASES=N)
	@./hack/as-root ./hack/proof

.PHONY: fuzz
fuzz: ## run every fuzz target for 10 minutes (FUZZTIME=1m and so on)
	@./hack/fuzz

.PHONY: kubernetes
kubernetes: ## build Kubernetes' own programs, and images, into the user's cache: for a lab with a real cluster, and tests (needs root)
	@dir=$$(./hack/kubernetes $(PROGRAMS)) && ./hack/as-root ./hack/kubernetes-images "$$dir" && echo "$$dir"

# deploy/twill.yaml wants this version, and a lab this machine's architecture.
.PHONY: conformance
conformance: VERSION := dev
conformance: IMAGE := -arch $(shell go env GOARCH)
conformance: build image kubernetes ## run Kubernetes' own tests of the network on a lab, in ten minutes (needs root; CONFORMANCE="-group policy" and so on)
	@dir=$$(./hack/kubernetes e2e.test agnhost regression-issue-74839) && ./hack/as-root ./hack/kubernetes-images "$$dir" e2e-busybox e2e-agnhost e2e-regression && \
		./hack/as-root go run ./test/conformance -bin $(BIN) -kubernetes "$$dir" $(CONFORMANCE)

.PHONY: image
image: ## write the container image as an OCI archive, bin/twill-image.tar, for amd64 and arm64
	@mkdir -p $(BIN)
	@go run ./hack/image -version $(VERSION) -o $(BIN)/twill-image.tar $(IMAGE)

.PHONY: faults
faults: ## break things on a lab under load and print what was lost, in eight minutes (needs root; FAULTS="-run Killed" and so on)
	@./hack/as-root go test ./test/faults -count=1 -timeout 40m -parallel 4 $(FAULTS) -v -for=1m -outage=5m -every

.PHONY: bench
bench: build ## measure Twill beside its peers, one table (needs root; BENCH="-quick -only cni" and so on)
	@./hack/as-root go run ./test/bench -v -bin $(BIN) -save $(BIN)/bench.json $(BENCH)

.PHONY: verify
verify: ## check formatting, vet, staticcheck, known vulnerabilities and generated files
	@./hack/verify

.PHONY: update
update: ## refresh golden files and formatting (needs root for some); read the diff before you commit it
	@gofmt -w $$(git ls-files '*.go')
	@go generate ./deploy
	@go test ./api ./cli ./cni ./plan ./health ./agent ./install ./cmd/twill ./cmd/twill-lab -update
	@./hack/as-root go test ./preflight -update
	@./hack/as-root go test ./test/e2e -count 1 -run '^(TestBadInput|TestLifecycle)$$' -update

.PHONY: clean
clean: ## remove what was built
	@rm -rf $(BIN)
