# Debian's Redis for the tests, where no registry can be reached.
ARG BASE
FROM ${BASE}
RUN printf 'exit 101\n' > /usr/sbin/policy-rc.d && chmod +x /usr/sbin/policy-rc.d \
 && apt-get update -q && apt-get install --no-install-recommends -y redis-server \
 && rm -rf /var/lib/apt/lists/*
CMD ["redis-server"]
