# `kdjax serve` on an ONNX file: onnxruntime alone, no JAX, no root.
#   docker build -t kdjax-serve .
#   docker run -p 127.0.0.1:8080:8080 -v "$PWD/detectors:/detectors:ro" -v state:/state kdjax-serve
FROM python:3.11-slim AS build
RUN python3 -m venv /opt/kdjax
WORKDIR /build
COPY examples/serve/requirements.txt ./
RUN /opt/kdjax/bin/pip install --no-cache-dir -r requirements.txt
COPY pyproject.toml setup.cfg README.md LICENSE ./
COPY kdjax kdjax
RUN /opt/kdjax/bin/pip install --no-cache-dir --no-deps .

FROM python:3.11-slim
COPY --from=build /opt/kdjax /opt/kdjax
# Any user may keep state: a new volume takes this mode over.
RUN mkdir --mode=1777 /state
USER 1000:1000
EXPOSE 8080
VOLUME /state
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s CMD ["/opt/kdjax/bin/python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/readyz', timeout=4)"]
# On all addresses of the container; -p says who reaches it.
CMD ["/opt/kdjax/bin/kdjax", "serve", "--host=0.0.0.0", "--port=8080", "--detector=/detectors/plant.onnx", "--state=/state"]
