// One call of the service with grpc-js. Standard input is JSON: {address, protos, method, jwt, serviceConfig, seconds}; so is
// what is printed: {code, message, headers, pushback}.
'use strict';

const fs = require('node:fs');
const grpc = require('@grpc/grpc-js');
const protoLoader = require('@grpc/proto-loader');

const call = JSON.parse(fs.readFileSync(0, 'utf8'));

const definition = protoLoader.loadSync('forsta/ephemeraltoken/v1/ephemeral_token.proto', {
  includeDirs: call.protos,
});
const { EphemeralTokenService } = grpc.loadPackageDefinition(definition).forsta.ephemeraltoken.v1;

const client = new EphemeralTokenService(call.address, grpc.credentials.createInsecure(), {
  'grpc.service_config': call.serviceConfig,
});
const metadata = new grpc.Metadata();
metadata.set('authorization', `JWT ${call.jwt}`);

let headers = false;
const stream = client[call.method]({}, metadata, { deadline: Date.now() + call.seconds * 1000 }, (err) => {
  const [pushback] = err ? err.metadata.get('grpc-retry-pushback-ms') : [];
  console.log(JSON.stringify({ code: grpc.status[err ? err.code : grpc.status.OK], message: err ? err.details : '', headers, pushback }));
  client.close();
});
stream.on('metadata', () => {
  headers = true;
});
